//! The hosts of an entry that names several: which one the next attempt takes, and which are
//! passed over because the last attempt there failed.

use std::time::Instant;

/// Which host the next attempt takes (`load_balance_hosts`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HostOrder {
    /// The next one.
    #[default]
    RoundRobin,
    /// The same one, as long as attempts there succeed.
    Stay,
}

/// Whether another host may be tried at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Others {
    Fit,
    AllFailing,
}

/// The hosts.
#[derive(Debug)]
pub(super) struct HostList {
    order: HostOrder,
    turn: usize,
    /// Until when each is passed over.
    failing: Vec<Option<Instant>>,
}

impl HostList {
    pub(super) fn new(count: usize, order: HostOrder) -> Self {
        HostList { order, turn: 0, failing: vec![None; count.max(1)] }
    }

    /// Whether it is a list of so many hosts in that order.
    pub(super) fn is(&self, count: usize, order: HostOrder) -> bool {
        self.failing.len() == count.max(1) && self.order == order
    }

    /// The host of the next attempt. When all are failing it is the one whose turn it is.
    pub(super) fn choose(&mut self, now: Instant) -> usize {
        let count = self.failing.len();
        let turns = (0..count).map(|step| (self.turn + step) % count);
        let chosen = turns.into_iter().find(|host| !self.is_failing(now, *host));
        let chosen = chosen.unwrap_or(self.turn % count);
        self.turn = match self.order {
            HostOrder::RoundRobin => (chosen + 1) % count,
            HostOrder::Stay => chosen,
        };
        chosen
    }

    /// An attempt failed that was begun at `started`: its host is passed over until `until`. Others
    /// that were passed over when it began have not been tried since.
    pub(super) fn failed(&mut self, started: Instant, host: usize, until: Instant) -> Others {
        let count = self.failing.len();
        if let Some(failing) = self.failing.get_mut(host) {
            *failing = Some(until);
        }
        if self.order == HostOrder::Stay && self.turn == host {
            self.turn = (host + 1) % count;
        }
        let fit = (0..count).any(|other| other != host && !self.is_failing(started, other));
        if fit { Others::Fit } else { Others::AllFailing }
    }

    /// An attempt succeeded.
    pub(super) fn succeeded(&mut self, host: usize) {
        if let Some(failing) = self.failing.get_mut(host) {
            *failing = None;
        }
    }

    /// What failed is forgotten.
    pub(super) fn forgive(&mut self) {
        self.failing.fill(None);
    }

    fn is_failing(&self, now: Instant, host: usize) -> bool {
        self.failing.get(host).copied().flatten().is_some_and(|until| now < until)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn hosts_take_turns_and_failing_ones_are_passed_over() {
        let now = Instant::now();
        let later = now + Duration::from_secs(15);
        let mut hosts = HostList::new(3, HostOrder::RoundRobin);
        let next = |hosts: &mut HostList, now| [(); 4].map(|()| hosts.choose(now));
        assert_eq!(next(&mut hosts, now), [0, 1, 2, 0]);
        assert_eq!(hosts.failed(now, 1, later), Others::Fit);
        assert_eq!(next(&mut hosts, now), [2, 0, 2, 0]);
        assert_eq!(hosts.failed(now, 2, later), Others::Fit);
        assert_eq!(hosts.failed(now, 0, later), Others::AllFailing);
        assert_eq!(hosts.choose(now), 1);
        assert_eq!(next(&mut hosts, later), [2, 0, 1, 2]);
        hosts.failed(now, 0, later);
        hosts.succeeded(0);
        assert_eq!(hosts.choose(now), 0);
    }

    #[test]
    fn hosts_that_do_not_answer_are_all_failing_however_long_that_takes() {
        let (began, pause) = (Instant::now(), Duration::from_secs(15));
        let mut hosts = HostList::new(2, HostOrder::RoundRobin);
        assert_eq!(hosts.choose(began), 0);
        let timeout = began + pause;
        assert_eq!(hosts.failed(began, 0, timeout + pause), Others::Fit);
        assert_eq!(hosts.choose(timeout), 1);
        assert_eq!(hosts.failed(timeout, 1, timeout + pause + pause), Others::AllFailing);
    }

    #[test]
    fn one_host_is_kept_until_it_fails() {
        let now = Instant::now();
        let later = now + Duration::from_secs(15);
        let mut hosts = HostList::new(2, HostOrder::Stay);
        assert_eq!([(); 3].map(|()| hosts.choose(now)), [0, 0, 0]);
        assert_eq!(hosts.failed(now, 0, later), Others::Fit);
        assert_eq!([(); 2].map(|()| hosts.choose(now)), [1, 1]);
        // The first may be fit again: who has moved on stays.
        assert_eq!(hosts.choose(later), 1);
        assert_eq!(hosts.failed(later, 1, later + Duration::from_secs(15)), Others::Fit);
        assert_eq!(hosts.choose(later), 0);
    }

    #[test]
    fn a_single_host_has_no_others() {
        let now = Instant::now();
        let mut hosts = HostList::new(1, HostOrder::RoundRobin);
        assert_eq!(hosts.failed(now, 0, now + Duration::from_secs(1)), Others::AllFailing);
        assert_eq!(hosts.choose(now), 0);
    }
}
