//! Limits that several pools share: the servers of a database (max_db_connections) and those of a
//! user (max_user_connections).
//!
//! Each pool belongs to a group of its database and to one of its user. It takes a share before it
//! opens a server and gives it back when the server is gone. A pool that is denied a share is
//! hungry: since its first waiter came. Whoever is hungry for longest is told first when a share
//! is free, and other pools part with idle servers for it.
//!
//! Not here: which server a pool parts with (`Pool::evict`), and who calls whom.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use foldhash::fast::RandomState;

/// What a limit is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Group {
    /// All pools of an entry.
    Database(Arc<str>),
    /// All pools of a server user.
    User(Arc<str>),
}

/// A pool as these limits know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Member(u64);

#[derive(Debug, Default)]
struct Common {
    /// 0 means no limit.
    limit: usize,
    used: usize,
    members: Vec<Member>,
}

impl Common {
    fn is_full(&self) -> bool {
        self.limit > 0 && self.used >= self.limit
    }
}

#[derive(Debug)]
struct Part {
    groups: [Group; 2],
    slots: usize,
    hungry: Option<Instant>,
}

/// All shared limits.
#[derive(Debug, Default)]
pub struct Shares {
    groups: HashMap<Group, Common, RandomState>,
    parts: HashMap<Member, Part, RandomState>,
    minted: u64,
    hints: VecDeque<Member>,
    hungry: Arc<AtomicUsize>,
}

impl Shares {
    /// Sets a limit; 0 means none.
    pub fn set_limit(&mut self, group: Group, limit: usize) {
        let common = self.groups.entry(group.clone()).or_default();
        common.limit = limit;
        self.hint(&group);
    }

    /// A pool to be told that it may open servers.
    pub fn poll_hint(&mut self) -> Option<Member> {
        self.hints.pop_front()
    }

    /// Servers that count for a group, and its limit.
    pub fn usage(&self, group: &Group) -> (usize, usize) {
        self.groups.get(group).map_or((0, 0), |common| (common.used, common.limit))
    }

    /// The other pools of each full group of a hungry pool: one of each has to part with a server.
    pub fn victims(&self, member: Member) -> Vec<Vec<Member>> {
        let Some(part) = self.parts.get(&member).filter(|part| part.hungry.is_some()) else {
            return Vec::new();
        };
        let full = part.groups.iter().filter_map(|group| self.groups.get(group));
        let others = |common: &Common| {
            common.members.iter().copied().filter(|other| *other != member).collect()
        };
        full.filter(|common| common.is_full()).map(others).collect()
    }

    fn join(&mut self, groups: [Group; 2]) -> Member {
        self.minted += 1;
        let member = Member(self.minted);
        for group in &groups {
            self.groups.entry(group.clone()).or_default().members.push(member);
        }
        self.parts.insert(member, Part { groups, slots: 0, hungry: None });
        member
    }

    fn leave(&mut self, member: Member) {
        self.set_hunger(member, None);
        let Some(part) = self.parts.remove(&member) else { return };
        for group in &part.groups {
            if let Some(common) = self.groups.get_mut(group) {
                common.used -= part.slots;
                common.members.retain(|other| *other != member);
                if common.members.is_empty() {
                    self.groups.remove(group);
                }
            }
            self.hint(group);
        }
    }

    fn is_blocked(&self, part: &Part) -> bool {
        part.groups.iter().any(|group| self.groups.get(group).is_some_and(Common::is_full))
    }

    /// Hungry pools of a group that could open a server now and came before `since`.
    fn earlier(&self, common: &Common, member: Member, since: Instant) -> usize {
        let earlier = common.members.iter().filter(|other| **other != member);
        let parts = earlier.filter_map(|other| self.parts.get(other));
        parts.filter(|p| p.hungry.is_some_and(|at| at < since) && !self.is_blocked(p)).count()
    }

    fn take(&mut self, member: Member, since: Instant) -> bool {
        let Some(part) = self.parts.get(&member) else { return true };
        let denied = part.groups.iter().filter_map(|group| self.groups.get(group)).any(|common| {
            let room = common.limit.saturating_sub(common.used);
            common.limit > 0 && room <= self.earlier_if_any(common, member, since)
        });
        if denied {
            return false;
        }
        let Some(part) = self.parts.get_mut(&member) else { return true };
        part.slots += 1;
        let groups = part.groups.clone();
        for group in &groups {
            if let Some(common) = self.groups.get_mut(group) {
                common.used += 1;
            }
        }
        if self.hungry.load(Ordering::Relaxed) > 0 {
            self.pass_by(&groups);
        }
        true
    }

    /// Groups may have become full: in their other groups the hungry ones there stand in nobody's
    /// way any more.
    fn pass_by(&mut self, groups: &[Group; 2]) {
        let full = groups.iter().filter_map(|group| self.groups.get(group));
        let members = full.filter(|common| common.is_full()).flat_map(|common| &common.members);
        let parts = members.filter_map(|member| self.parts.get(member));
        let hungry = parts.filter(|part| part.hungry.is_some());
        let others: Vec<Group> = hungry.flat_map(|part| part.groups.iter().cloned()).collect();
        others.iter().for_each(|group| self.hint(group));
    }

    fn earlier_if_any(&self, common: &Common, member: Member, since: Instant) -> usize {
        if self.hungry.load(Ordering::Relaxed) == 0 || common.is_full() {
            return 0;
        }
        self.earlier(common, member, since)
    }

    fn give(&mut self, member: Member) {
        let Some(part) = self.parts.get_mut(&member) else { return };
        assert!(part.slots > 0, "only what was taken is given back");
        part.slots -= 1;
        let groups = part.groups.clone();
        for group in &groups {
            if let Some(common) = self.groups.get_mut(group) {
                common.used -= 1;
            }
        }
        groups.iter().for_each(|group| self.hint(group));
    }

    /// Tells the pools of a group that have been hungry for longest and can open a server now. If
    /// there is none, the first that another limit holds back, so that room is made there.
    fn hint(&mut self, group: &Group) {
        if self.hungry.load(Ordering::Relaxed) == 0 {
            return;
        }
        let Some(common) = self.groups.get(group) else { return };
        let room = match common.limit {
            0 => usize::MAX,
            limit => limit.saturating_sub(common.used),
        };
        let mut hungry: Vec<(bool, Instant, Member)> = Vec::new();
        for member in &common.members {
            let Some(part) = self.parts.get(member) else { continue };
            hungry.extend(part.hungry.map(|since| (self.is_blocked(part), since, *member)));
        }
        hungry.sort_unstable();
        let able = hungry.iter().filter(|(blocked, ..)| !blocked).count();
        for (_, _, member) in hungry.into_iter().take(able.max(1).min(room.max(1))) {
            if !self.hints.contains(&member) {
                self.hints.push_back(member);
            }
        }
    }

    fn set_hunger(&mut self, member: Member, since: Option<Instant>) {
        let Some(part) = self.parts.get_mut(&member) else { return };
        let before = std::mem::replace(&mut part.hungry, since);
        match (before, since) {
            (None, Some(_)) => {
                self.hungry.fetch_add(1, Ordering::Relaxed);
            }
            (Some(_), None) => {
                self.hungry.fetch_sub(1, Ordering::Relaxed);
            }
            (None, None) | (Some(_), Some(_)) => {}
        }
        // Others may have been denied in its favour.
        if before.is_some_and(|before| since.is_none_or(|since| since > before)) {
            let groups = part.groups.clone();
            groups.iter().for_each(|group| self.hint(group));
        }
    }

    /// Since when a pool has been hungry that one server of this member would satisfy.
    fn rival(&self, member: Member) -> Option<Instant> {
        let part = self.parts.get(&member)?;
        let full = part.groups.iter().filter_map(|group| self.groups.get(group));
        let others = full.filter(|common| common.is_full()).flat_map(|common| &common.members);
        let helped = |other: &Part| {
            let blocking = |group: &&Group| self.groups.get(group).is_some_and(Common::is_full);
            other.groups.iter().filter(blocking).all(|group| part.groups.contains(group))
        };
        let rivals = others.filter(|other| **other != member).filter_map(|o| self.parts.get(o));
        rivals.filter(|other| helped(other)).filter_map(|other| other.hungry).min()
    }

    /// Panics if an invariant is broken.
    pub fn check(&self) {
        for (group, common) in &self.groups {
            let parts = common.members.iter().filter_map(|member| self.parts.get(member));
            let used: usize = parts.map(|part| part.slots).sum();
            assert_eq!(used, common.used, "every share of {group:?} is counted once");
        }
        let hungry = self.parts.values().filter(|part| part.hungry.is_some()).count();
        assert_eq!(hungry, self.hungry.load(Ordering::Relaxed), "the hungry are counted");
    }
}

/// The shared limits as all pools and threads know them.
#[derive(Clone, Debug)]
pub struct SharedLimits {
    shares: Arc<Mutex<Shares>>,
    hungry: Arc<AtomicUsize>,
}

impl Default for SharedLimits {
    fn default() -> Self {
        Self::new()
    }
}

impl SharedLimits {
    /// No limits yet.
    pub fn new() -> Self {
        let shares = Shares::default();
        let hungry = Arc::clone(&shares.hungry);
        SharedLimits { shares: Arc::new(Mutex::new(shares)), hungry }
    }

    /// The guarded machine. A pool's lock may be held while this is taken, never the reverse.
    pub fn lock(&self) -> MutexGuard<'_, Shares> {
        self.shares.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether any pool was denied a share. Costs one load, for looks on busy paths.
    #[inline]
    pub fn is_contended(&self) -> bool {
        self.hungry.load(Ordering::Relaxed) > 0
    }

    /// A place for a pool of this database and user.
    pub fn join(&self, database: &str, user: &str) -> Share {
        let groups = [Group::Database(database.into()), Group::User(user.into())];
        let member = self.lock().join(groups);
        Share { limits: self.clone(), member }
    }
}

/// A pool's place among those who share limits; it is left with the last server when dropped.
#[derive(Debug)]
pub struct Share {
    limits: SharedLimits,
    member: Member,
}

impl Share {
    /// Its name for hints.
    pub fn member(&self) -> Member {
        self.member
    }

    pub(super) fn take(&self, since: Instant) -> bool {
        self.limits.lock().take(self.member, since)
    }

    pub(super) fn give(&self) {
        self.limits.lock().give(self.member);
    }

    pub(super) fn set_hunger(&self, since: Option<Instant>) {
        self.limits.lock().set_hunger(self.member, since);
    }

    pub(super) fn rival(&self) -> Option<Instant> {
        if !self.limits.is_contended() {
            return None;
        }
        self.limits.lock().rival(self.member)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.limits.lock().leave(self.member);
    }
}
