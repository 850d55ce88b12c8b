//! SHOW HOOKS.

use switchyard_core::console::tables::Row;

use crate::hooks::stats::Hook;
use crate::log::time_text;
use crate::worker::Worker;
use crate::worker::console::tables::text;

/// A native rule: how often it has decided.
fn rule_row(section: &str, (name, rule, count): (&str, &str, u64)) -> Row {
    let mut row =
        vec![text(format!("{section}.{name}")), text(rule), text("loaded"), None, text(0), text(0)];
    row.extend([text(count), text(count)]);
    row.extend((0..8).map(|_| text(0)));
    row.extend([text(""), text(0)]);
    row
}

/// A counter of the modules' own.
fn counter_row((name, count): (String, u64)) -> Row {
    let mut row = vec![text(format!("counters.{name}")), text(""), text("counted"), None];
    row.extend([text(0), text(0), text(count)]);
    row.extend((0..9).map(|_| text(0)));
    row.extend([text(""), text(0)]);
    row
}

impl Worker {
    pub(super) fn hook_rows(&self) -> Vec<Row> {
        let host = self.shared.hooks();
        let stats = &self.shared.hook_stats;
        let row = |hook: Hook| {
            let module = host.as_ref().map(|host| &host.options.modules[hook as usize]);
            let module = module.filter(|module| module.is_on());
            let on = module.is_some();
            let report = host.as_ref().and_then(|host| host.report()).unwrap_or_default();
            let state = match (on, stats.workers()) {
                (false, _) => "off",
                (true, 0) => "failed",
                (true, _) => "loaded",
            };
            let loaded = host.as_ref().filter(|_| on).map(|host| time_text(host.loaded_at));
            let totals = stats.totals(hook);
            let name = match hook {
                Hook::Rewrite => "rewrite_query",
                Hook::Route => "routing_rules",
            };
            vec![
                text(name),
                text(module.map_or("", |module| module.file.as_str())),
                text(state),
                loaded,
                text(if on { report.arity[hook as usize] } else { 0 }),
                text(if on { stats.workers() } else { 0 }),
                text(totals.calls),
                text(totals.changed),
                text(totals.identical),
                text(totals.none),
                text(totals.unknown),
                text(totals.errors),
                text(totals.timeouts),
                text(totals.ignored),
                text(totals.micros.checked_div(totals.calls).unwrap_or(0)),
                text(totals.longest),
                text(stats.last_error(hook)),
                text(totals.shadow),
            ]
        };
        let mut rows = vec![row(Hook::Rewrite), row(Hook::Route)];
        if let Some(rules) = self.shared.rules() {
            rows.extend(rules.rewrites.rows().map(|rule| rule_row("rewrites", rule)));
            rows.extend(rules.routes.rows().map(|rule| rule_row("routes", rule)));
        }
        rows.extend(stats.counters().into_iter().map(counter_row));
        rows
    }
}
