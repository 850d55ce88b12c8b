//! How often warnings about hooks may be written: for each subject at once, then at most one line
//! a second with the number of those left out.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What warnings are about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Topic {
    /// rewrite_query failed.
    Rewrite,
    /// routing_rules failed.
    Route,
    /// A key that is no entry.
    Unknown,
    /// A key that came inside a transaction.
    Inside,
    /// A message that was refused.
    Refused,
    /// A shadow module that differs.
    Shadow,
}

/// At most one warning a subject in this time.
const EVERY: Duration = Duration::from_secs(1);
/// Subjects remembered.
const SUBJECTS_MAX: usize = 1000;

/// Leave to write a warning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leave {
    /// How many were left out since the last one.
    pub suppressed: u64,
    /// Whether it is the first about its subject.
    pub first: bool,
}

/// When each subject was last warned about.
#[derive(Debug, Default)]
pub struct Warnings(Mutex<HashMap<(Topic, String), (Instant, u64)>>);

impl Warnings {
    /// Whether a warning may be written.
    pub fn leave(&self, now: Instant, topic: Topic, subject: &str) -> Option<Leave> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((last, suppressed)) = known.get_mut(&(topic, subject.to_owned())) {
            if now.saturating_duration_since(*last) < EVERY {
                *suppressed += 1;
                return None;
            }
            *last = now;
            return Some(Leave { suppressed: std::mem::take(suppressed), first: false });
        }
        if known.len() >= SUBJECTS_MAX {
            known.retain(|_, (last, _)| now.saturating_duration_since(*last) < EVERY);
            if known.len() >= SUBJECTS_MAX {
                return None;
            }
        }
        known.insert((topic, subject.to_owned()), (now, 0));
        Some(Leave { suppressed: 0, first: true })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_a_second_and_subject() {
        let (warnings, start) = (Warnings::default(), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        let leave = |ms, key| warnings.leave(at(ms), Topic::Unknown, key);
        assert_eq!(leave(0, "a"), Some(Leave { suppressed: 0, first: true }));
        assert_eq!(leave(10, "a"), None);
        assert_eq!(leave(20, "b"), Some(Leave { suppressed: 0, first: true }));
        assert_eq!(leave(30, "a"), None);
        assert_eq!(leave(1100, "a"), Some(Leave { suppressed: 2, first: false }));
    }
}
