//! Names of hosts and the addresses they stand for: what was answered and how long that holds, who
//! waits for an answer, and which addresses an answer has given up.
//!
//! Not here: how a name is looked up. Invariants: at most one lookup of a name is under way, and
//! whoever was told to wait is named in exactly one answer.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use foldhash::fast::RandomState;

/// Names that are remembered at most.
pub const NAMES_MAX: usize = 4096;

/// How long answers hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// One with addresses (`dns_max_ttl`).
    pub addresses: Duration,
    /// One without (`dns_nxdomain_ttl`).
    pub failure: Duration,
}

/// How young an answer has to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    /// It holds as long as it holds.
    Remembered,
    /// Addresses must not be older than this, and a failure is not remembered.
    Fresh(Duration),
}

/// Answer to a question for a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply<A> {
    /// Its addresses, in the order in which this connection should try them.
    Known(Vec<A>),
    /// It has none, as far as is remembered.
    Failed,
    /// Wait, and look the name up.
    Look,
    /// Wait: it is being looked up.
    Wait,
}

/// What the end of a lookup means.
#[derive(Debug, PartialEq, Eq)]
pub struct News<A, W> {
    /// Those who waited, each with the addresses in its order; none means that there are none.
    pub told: Vec<(W, Vec<A>)>,
    /// Addresses that the name stood for before, and does no more.
    pub lost: Vec<A>,
}

/// One name, as operators see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NameRow<A> {
    /// The name.
    pub host: String,
    /// How long the last answer still holds.
    pub left: Duration,
    /// Its addresses.
    pub addresses: Vec<A>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    /// Never answered.
    Nothing,
    /// Addresses came at the first and hold until the second.
    Addresses(Instant, Instant),
    /// A failure that holds until then.
    Failure(Instant),
}

#[derive(Debug)]
struct Host<A, W> {
    known: Known,
    /// Of the last answer that had any.
    addresses: Vec<A>,
    /// Whose turn it is among them.
    turn: usize,
    /// Those who wait, while it is being looked up.
    waiting: Option<Vec<W>>,
}

impl<A: Clone, W> Host<A, W> {
    /// The addresses, beginning with the one whose turn it is.
    fn next(&mut self) -> Vec<A> {
        let mut addresses = self.addresses.clone();
        if !addresses.is_empty() {
            let turn = self.turn % addresses.len();
            addresses.rotate_left(turn);
            self.turn = turn + 1;
        }
        addresses
    }

    fn until(&self) -> Option<Instant> {
        match self.known {
            Known::Nothing => None,
            Known::Addresses(_, until) | Known::Failure(until) => Some(until),
        }
    }
}

/// Names with addresses `A`, asked for by `W`.
#[derive(Debug)]
pub struct Names<A, W> {
    hosts: HashMap<String, Host<A, W>, RandomState>,
}

impl<A, W> Default for Names<A, W> {
    fn default() -> Self {
        Names { hosts: HashMap::default() }
    }
}

impl<A: Clone + PartialEq, W> Names<A, W> {
    /// Somebody needs the addresses of a name.
    pub fn ask(&mut self, now: Instant, host: &str, who: W, patience: Patience) -> Reply<A> {
        if !self.hosts.contains_key(host) && !self.make_room(now) {
            return Reply::Failed;
        }
        let (known, addresses, turn, waiting) = (Known::Nothing, Vec::new(), 0, None);
        let fresh = Host { known, addresses, turn, waiting };
        let entry = self.hosts.entry(host.into()).or_insert(fresh);
        match (entry.known, patience) {
            (Known::Addresses(_, until), Patience::Remembered) if now < until => {
                return Reply::Known(entry.next());
            }
            (Known::Addresses(at, until), Patience::Fresh(age)) if now < until.min(at + age) => {
                return Reply::Known(entry.next());
            }
            (Known::Failure(until), Patience::Remembered) if now < until => return Reply::Failed,
            (Known::Nothing | Known::Addresses(..) | Known::Failure(_), _) => {}
        }
        match &mut entry.waiting {
            Some(waiting) => {
                waiting.push(who);
                Reply::Wait
            }
            None => {
                entry.waiting = Some(vec![who]);
                Reply::Look
            }
        }
    }

    /// A lookup has ended; without addresses it has failed.
    pub fn answered(&mut self, now: Instant, host: &str, found: &[A], terms: Terms) -> News<A, W> {
        let Some(entry) = self.hosts.get_mut(host) else {
            return News { told: Vec::new(), lost: Vec::new() };
        };
        let waiting = entry.waiting.take().unwrap_or_default();
        if found.is_empty() {
            // The old addresses stay, to be compared with the next ones.
            entry.known = Known::Failure(now + terms.failure);
            let told = waiting.into_iter().map(|who| (who, Vec::new())).collect();
            return News { told, lost: Vec::new() };
        }
        let mut addresses: Vec<A> = Vec::with_capacity(found.len());
        for address in found {
            if !addresses.contains(address) {
                addresses.push(address.clone());
            }
        }
        let mut lost = std::mem::replace(&mut entry.addresses, addresses);
        lost.retain(|address| !entry.addresses.contains(address));
        entry.known = Known::Addresses(now, now + terms.addresses);
        let told = waiting.into_iter().map(|who| (who, entry.next())).collect();
        News { told, lost }
    }

    /// Whether the last answer for a name had an address of this kind, or there was none.
    pub fn stands_for(&self, host: &str, kind: impl Fn(&A) -> bool) -> bool {
        let addresses = self.hosts.get(host).map(|entry| &entry.addresses[..]).unwrap_or_default();
        addresses.is_empty() || addresses.iter().any(kind)
    }

    /// All names, sorted.
    pub fn rows(&self, now: Instant) -> Vec<NameRow<A>> {
        let row = |(host, entry): (&String, &Host<A, W>)| NameRow {
            host: host.clone(),
            left: entry.until().map_or(Duration::ZERO, |at| at.saturating_duration_since(now)),
            addresses: match entry.known {
                Known::Addresses(..) => entry.addresses.clone(),
                Known::Nothing | Known::Failure(_) => Vec::new(),
            },
        };
        let mut rows: Vec<_> = self.hosts.iter().map(row).collect();
        rows.sort_by(|a, b| a.host.cmp(&b.host));
        rows
    }

    /// Names that are known.
    pub fn len(&self) -> usize {
        self.hosts.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.hosts.is_empty()
    }

    /// Lookups under way.
    pub fn lookups(&self) -> usize {
        self.hosts.values().filter(|entry| entry.waiting.is_some()).count()
    }

    /// Panics if an invariant is broken.
    pub fn check(&self) {
        assert!(self.hosts.len() <= NAMES_MAX, "names are bounded");
        for entry in self.hosts.values() {
            assert!(entry.waiting.as_ref().is_none_or(|waiting| !waiting.is_empty()));
            let known = !matches!(entry.known, Known::Addresses(..));
            assert!(known || !entry.addresses.is_empty(), "an answer has addresses");
        }
    }

    /// Makes room for one more name by forgetting those whose answers hold no more.
    fn make_room(&mut self, now: Instant) -> bool {
        if self.hosts.len() >= NAMES_MAX {
            self.hosts.retain(|_, entry| {
                entry.waiting.is_some() || entry.until().is_some_and(|until| now < until)
            });
        }
        self.hosts.len() < NAMES_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TERMS: Terms =
        Terms { addresses: Duration::from_secs(15), failure: Duration::from_secs(5) };

    struct Stage {
        names: Names<u8, u8>,
        start: Instant,
    }

    impl Stage {
        fn new() -> Self {
            Stage { names: Names::default(), start: Instant::now() }
        }

        fn at(&self, seconds: f64) -> Instant {
            self.start + Duration::from_secs_f64(seconds)
        }

        fn ask(&mut self, at: f64, who: u8) -> Reply<u8> {
            let reply = self.names.ask(self.at(at), "h", who, Patience::Remembered);
            self.names.check();
            reply
        }

        fn answer(&mut self, at: f64, found: &[u8]) -> News<u8, u8> {
            let news = self.names.answered(self.at(at), "h", found, TERMS);
            self.names.check();
            news
        }
    }

    #[test]
    fn one_lookup_serves_all_who_wait_and_each_begins_with_another_address() {
        let mut stage = Stage::new();
        assert_eq!(stage.ask(0.0, 1), Reply::Look);
        assert_eq!(stage.ask(0.1, 2), Reply::Wait);
        assert_eq!(stage.names.lookups(), 1);
        let news = stage.answer(1.0, &[7, 8, 7]);
        assert_eq!(news.told, [(1, vec![7, 8]), (2, vec![8, 7])]);
        assert_eq!(news.lost, []);
        let stands = |address: u8| stage.names.stands_for("h", |known| *known == address);
        assert_eq!([7, 8, 9].map(stands), [true, true, false]);
        assert_eq!(stage.ask(15.9, 3), Reply::Known(vec![7, 8]));
        assert_eq!(stage.ask(16.0, 3), Reply::Look);
        assert_eq!(stage.answer(16.5, &[8, 9]).lost, [7]);
    }

    #[test]
    fn failures_are_remembered_and_the_addresses_before_them_compared_later() {
        let mut stage = Stage::new();
        assert_eq!(stage.ask(0.0, 1), Reply::Look);
        stage.answer(0.0, &[7]);
        assert_eq!(stage.ask(20.0, 1), Reply::Look);
        let news = stage.answer(20.0, &[]);
        assert_eq!((news.told, news.lost), (vec![(1, vec![])], vec![]));
        assert_eq!(stage.ask(24.9, 1), Reply::Failed);
        let fresh = Patience::Fresh(Duration::from_secs(1));
        assert_eq!(stage.names.ask(stage.at(24.9), "h", 2, fresh), Reply::Look);
        assert_eq!(stage.answer(25.0, &[8]).lost, [7]);
        assert_eq!(stage.names.ask(stage.at(26.1), "h", 2, fresh), Reply::Look);
    }

    #[test]
    fn what_operators_see() {
        let mut stage = Stage::new();
        stage.ask(0.0, 1);
        let row = |left, addresses: &[u8]| {
            let (host, left) = ("h".into(), Duration::from_secs_f64(left));
            vec![NameRow { host, left, addresses: addresses.to_vec() }]
        };
        assert_eq!(stage.names.rows(stage.at(0.0)), row(0.0, &[]));
        stage.answer(0.0, &[7]);
        assert_eq!(stage.names.rows(stage.at(1.0)), row(14.0, &[7]));
        assert_eq!(stage.names.rows(stage.at(99.0)), row(0.0, &[7]));
    }

    #[test]
    fn at_the_limit_only_names_that_hold_no_more_make_room() {
        let mut stage = Stage::new();
        for index in 0..NAMES_MAX {
            let (now, host) = (stage.at(0.0), format!("h{index}"));
            assert_eq!(stage.names.ask(now, &host, 0, Patience::Remembered), Reply::Look);
            stage.names.answered(now, &host, &[1], TERMS);
        }
        assert_eq!(stage.ask(14.0, 1), Reply::Failed);
        assert_eq!(stage.ask(15.0, 1), Reply::Look);
        assert_eq!(stage.names.len(), 1);
    }
}
