//! Which modules run how, as the settings say it, with the files of one moment.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::Duration;

use switchyard_config::reason;
use switchyard_config::settings::Settings;

/// Setting's word for a hook that is off.
const OFF: &str = "not_enabled";

/// Which modules run how.
#[derive(Clone, Debug, PartialEq)]
pub struct HookOptions {
    /// rewrite_query, routing_rules, and their shadows.
    pub modules: [Module; 4],
    /// The interpreter.
    pub python: String,
    /// `hook_timeout`; `None` means no deadline.
    pub timeout: Option<Duration>,
    /// `hook_workers`.
    pub workers: usize,
    /// `hook_workers_max`.
    pub workers_max: usize,
    /// `hook_max_query_size` in bytes.
    pub query_max: usize,
    /// `hook_max_rss` in bytes; 0 means no limit.
    pub rss_max: u64,
    /// `hook_cache_size`.
    pub cache_max: usize,
    /// `max_packet_size`.
    pub packet_max: usize,
}

/// A module's file, empty if it is off. All processes run the source that was read, whatever
/// happens to the file.
#[derive(Clone, Debug, PartialEq)]
pub struct Module {
    /// As the setting names it.
    pub file: String,
    /// Where it was found.
    pub path: PathBuf,
    /// Its text, or why there is none.
    pub source: Result<Vec<u8>, String>,
    stamp: Option<(i64, i64, u64, u64)>,
}

impl Module {
    fn new(setting: &str) -> Self {
        let on = !setting.is_empty() && setting != OFF;
        if !on {
            let (file, path) = (String::new(), PathBuf::new());
            return Module { file, path, source: Ok(Vec::new()), stamp: None };
        }
        let home = std::env::var("HOME").unwrap_or_default();
        let path = match setting.strip_prefix("~/") {
            Some(rest) => PathBuf::from(&home).join(rest),
            None => PathBuf::from(setting),
        };
        let path = std::path::absolute(&path).unwrap_or(path);
        let data = std::fs::metadata(&path).ok();
        let stamp = data.map(|data| (data.mtime(), data.mtime_nsec(), data.ino(), data.size()));
        let source = std::fs::read(&path).map_err(|error| format!("{setting}: {}", reason(&error)));
        Module { file: setting.to_owned(), path, source, stamp }
    }

    /// Whether the hook is configured.
    pub fn is_on(&self) -> bool {
        !self.file.is_empty()
    }
}

impl HookOptions {
    /// From settings; `None` if no hook is on.
    pub fn new(settings: &Settings) -> Option<Self> {
        let modules = [
            Module::new(&settings.rewrite_query_py_module_file),
            Module::new(&settings.routing_rules_py_module_file),
            Module::new(&settings.hook_shadow_rewrite_query_py_module_file),
            Module::new(&settings.hook_shadow_routing_rules_py_module_file),
        ];
        if !modules.iter().any(Module::is_on) {
            return None;
        }
        let environment = settings.hook_python.clone().or(std::env::var("VIRTUAL_ENV").ok());
        let python = match environment.filter(|path| !path.is_empty()) {
            Some(path) if PathBuf::from(&path).is_dir() => format!("{path}/bin/python3"),
            Some(path) => path,
            None => "python3".into(),
        };
        let count = |number: i64| usize::try_from(number).unwrap_or(1).max(1);
        let timeout = settings.hook_timeout;
        Some(HookOptions {
            modules,
            python,
            timeout: (!timeout.is_zero()).then_some(timeout),
            workers: count(settings.hook_workers),
            workers_max: count(settings.hook_workers_max).max(count(settings.hook_workers)),
            query_max: usize::try_from(settings.hook_max_query_size.0).unwrap_or(usize::MAX),
            rss_max: settings.hook_max_rss.0,
            cache_max: usize::try_from(settings.hook_cache_size).unwrap_or(0),
            packet_max: usize::try_from(settings.max_packet_size).unwrap_or(i32::MAX as usize),
        })
    }

    /// Whether rewrite_query is configured.
    pub fn rewrites(&self) -> bool {
        self.modules[0].is_on()
    }

    /// Whether routing_rules is configured.
    pub fn routes(&self) -> bool {
        self.modules[1].is_on()
    }
}
