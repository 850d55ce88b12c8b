//! Who writes: what the nodes' last answers mean, the loss of a writer and the election of the
//! next.
//!
//! Not here: the rules of an election (`election`). Invariant: an election needs a full answer.

use std::time::{Duration, Instant};

use super::cluster::{
    Cause, Cluster, Effect, Hearing, REPEAT, Search, Severity, Split, State, Suspicion,
};
use super::discovery::heard_all;
use super::election::{Ballot, Oddity, Refusal, Verdict, challenger, elect, replaced};
use super::node::{FAILURES_UNTIL_DOWN, Node, Standing};
use super::options::Newcomers;
use super::probe::Question;
use super::snapshot::{Change, Kind};
use super::view::NodeId;

impl Cluster {
    /// Decides what the nodes' last answers mean for the writer.
    pub(super) fn judge(&mut self, now: Instant) {
        match self.state.clone() {
            State::Unknown if !self.discovery.settled() || !heard_all(&self.nodes) => {}
            State::Unknown | State::Searching(_) => self.search(now),
            State::Stable(writer) => self.watch(now, writer, None),
            State::Suspect(writer, suspicion) => self.watch(now, writer, Some(suspicion)),
        }
    }

    fn ballots(&self) -> Vec<Ballot> {
        let nodes = self.nodes.iter().enumerate();
        let nodes = nodes.filter(|(at, node)| !self.is_double(*at) && !self.is_alias(node));
        nodes.map(|(_, node)| node.ballot()).collect()
    }

    fn watch(&mut self, now: Instant, writer: NodeId, suspicion: Option<Suspicion>) {
        let Some(node) = self.nodes.iter().find(|node| node.id == writer) else {
            return self.lose(now, now, writer, "removed");
        };
        let (heard, heard_full) = (node.meters.heard, node.meters.heard_full);
        let failures = node.failures.run;
        let error = node.failures.text.clone().unwrap_or_default();
        let began = suspicion.map_or(now, |suspicion| suspicion.since);
        match node.standing {
            Standing::Reader => return self.lose(now, began, writer, "it is a standby"),
            Standing::Down if failures == 0 => {
                return self.lose(now, began, writer, "unclear answer");
            }
            Standing::Down | Standing::Writer(_) => {}
        }
        let signalled = |suspicion: &Suspicion| match suspicion.cause {
            Cause::Probe => false,
            Cause::Signal(kind) => kind.weighs(),
        };
        if failures >= FAILURES_UNTIL_DOWN
            || (failures > 0 && suspicion.is_some_and(|s| signalled(&s)))
        {
            return self.lose(now, began, writer, &error);
        }
        if failures > 0 {
            if suspicion.is_none() {
                let (cause, question) = (Cause::Probe, Question::Cheap);
                let suspicion = Suspicion { since: now, cause, question, again: None };
                self.state = State::Suspect(writer, suspicion);
                self.hurry(now);
            }
            return;
        }
        // Also where its name leads to a server that another node stands for.
        let all: Vec<Ballot> = self.nodes.iter().map(Node::ballot).collect();
        if let Some(refusal) = replaced(self.options.fencing, &self.memory, &all) {
            let (severity, text) = self.refused(writer, refusal);
            self.log(severity, text);
            return self.lose(now, began, writer, "it is another server");
        }
        self.learn_seat(writer);
        if let Some(suspicion) = suspicion {
            let heard = match suspicion.question {
                Question::Cheap => heard,
                Question::Full => heard_full,
            };
            if heard.is_some_and(|at| at >= suspicion.since) {
                self.confirm(now, writer, suspicion);
            }
        }
        match challenger(self.options.fencing, &self.memory, &self.ballots()) {
            Verdict::Elect(other, _) => {
                self.lose(now, began, writer, "another node has a higher timeline");
                if self.writer().is_none() {
                    self.seat(now, other, Oddity::None);
                }
            }
            Verdict::Split(one, other) => {
                self.lose(now, began, writer, "two writers");
                self.split(now, one, other);
            }
            Verdict::Nobody | Verdict::Confirm(_) => {}
        }
    }

    /// Remembers which server the writer is.
    fn learn_seat(&mut self, writer: NodeId) {
        let node = self.nodes.iter().find(|node| node.id == writer);
        if let Some(facts) = node.and_then(|node| node.facts.as_ref()) {
            self.memory.learn_writer(facts);
        }
    }

    /// The writer has answered a question that was asked after a doubt.
    fn confirm(&mut self, now: Instant, writer: NodeId, suspicion: Suspicion) {
        self.state = match suspicion.again {
            None => State::Stable(writer),
            Some(since) => {
                if suspicion.question == Question::Full {
                    self.nodes.iter_mut().for_each(|node| node.want_full(now));
                }
                State::Suspect(writer, Suspicion { since, again: None, ..suspicion })
            }
        };
        // Pools give nothing to a suspect writer until they hear of it.
        self.published.confirmed = Some(suspicion.since);
        self.show();
    }

    /// Whether everybody has answered who has to.
    fn has_heard(&self) -> bool {
        let State::Searching(search) = &self.state else { return true };
        let heard = |node: &Node| {
            node.failures.run > 0 || node.meters.heard_full.is_some_and(|at| at >= search.since)
        };
        search.hearing == Hearing::Any || self.nodes.iter().all(heard)
    }

    /// Whether all who answer have told their positions since this node is there.
    fn has_compared(&self, id: NodeId) -> bool {
        let node = self.nodes.iter().find(|node| node.id == id);
        let since = node.and_then(|node| node.meters.up_since);
        let told = |node: &Node| !node.answers() || node.meters.heard_full >= since;
        self.nodes.iter().filter(|node| node.id != id).all(told)
    }

    /// The promotion of another node has failed, perhaps: everybody is asked who the writer is.
    pub(super) fn doubt_all(&mut self, now: Instant, writer: NodeId) {
        self.nodes.iter_mut().for_each(|node| node.want_full(now));
        let text = "promotion failed";
        self.give_writer_up(now, now, writer, text, Hearing::All);
    }

    fn search(&mut self, now: Instant) {
        if !self.has_heard() {
            return;
        }
        let (verdict, refusals) = elect(self.options.fencing, &self.memory, &self.ballots());
        match verdict {
            Verdict::Elect(node, Oddity::TakenUp) if !self.has_compared(node) => {
                return self.nodes.iter_mut().for_each(|node| node.want_full(now));
            }
            Verdict::Elect(node, oddity) => return self.seat(now, node, oddity),
            Verdict::Confirm(node) => {
                if let Some(node) = self.nodes.iter_mut().find(|known| known.id == node) {
                    node.want_full(now);
                }
            }
            Verdict::Split(one, other) => self.split(now, one, other),
            Verdict::Nobody => self.mark(Split::No),
        }
        let foreign = refusals.iter().find(|(_, refusal)| matches!(refusal, Refusal::Foreign(..)));
        if let (Newcomers::Adopt, Verdict::Nobody, Some((node, _))) =
            (self.options.newcomers, verdict, foreign)
        {
            self.ask_adoption(now, *node);
        }
        if refusals.is_empty() || self.told.refusals.is_some_and(|at| now < at + REPEAT) {
            return;
        }
        self.told.refusals = Some(now);
        for (node, refusal) in refusals {
            let (severity, text) = self.refused(node, refusal);
            self.records.note(now, || text.clone());
            self.log(severity, text);
        }
    }

    pub(super) fn refused(&self, node: NodeId, refusal: Refusal) -> (Severity, String) {
        let (name, database) = (self.name(node), &self.options.database);
        match refusal {
            Refusal::Foreign(found, expected) => (
                Severity::Error,
                format!(
                    "node {name} belongs to another cluster (system identifier {found}, \
                     expected {expected})"
                ),
            ),
            Refusal::Stale(found, expected) => (
                Severity::Warning,
                format!(
                    "node {name} is a stale writer (timeline {found}, expected at least \
                     {expected})"
                ),
            ),
            Refusal::SameTimeline(timeline) => (
                Severity::Warning,
                format!(
                    "cluster \"{database}\": node {name} is on timeline {timeline} of the lost \
                     writer and is not taken (writer_fencing = strict)"
                ),
            ),
        }
    }

    fn mark(&mut self, split: Split) {
        if let State::Searching(search) = &mut self.state {
            search.split = split;
        }
    }

    fn split(&mut self, now: Instant, one: NodeId, other: NodeId) {
        self.mark(Split::Yes);
        if self.told.refusals.is_some_and(|at| now < at + REPEAT) {
            return;
        }
        self.told.refusals = Some(now);
        let (one, other) = (self.name(one), self.name(other));
        let database = &self.options.database;
        let text = format!("two writers in cluster \"{database}\": {one} and {other}");
        self.records.note(now, || text.clone());
        self.log(Severity::Error, text);
    }

    /// The writer is given up; `began` is the first sign of that.
    pub(super) fn lose(&mut self, now: Instant, began: Instant, writer: NodeId, reason: &str) {
        self.give_writer_up(now, began, writer, reason, Hearing::Any);
    }

    fn give_writer_up(
        &mut self,
        now: Instant,
        began: Instant,
        writer: NodeId,
        reason: &str,
        hearing: Hearing,
    ) {
        let until = now + self.options.timings.server_failed_delay;
        if let Some(node) = self.nodes.iter_mut().find(|node| node.id == writer) {
            node.unseat(until);
        }
        let database = &self.options.database;
        let text = format!("cluster \"{database}\": writer lost ({reason}), holding clients");
        self.state = State::Searching(Search { since: now, split: Split::No, hearing });
        self.told.silence = now + REPEAT;
        self.told.refusals = None;
        self.discovery.look_again(now);
        self.published.epoch += 1;
        self.published.event = self.records.begin(Change {
            id: 0,
            kind: Kind::Failover,
            trigger: reason.to_owned(),
            old: self.name(writer),
            new: String::new(),
            timelines: (self.memory.timeline, None),
            began,
            detected: now,
            elected: None,
            released: None,
            result: String::new(),
            journal: Vec::new(),
        });
        self.lost_during_operation(now, reason);
        self.publish(now);
        self.log(Severity::Log, text);
        self.hurry(now);
        self.search(now);
    }

    fn seat(&mut self, now: Instant, id: NodeId, oddity: Oddity) {
        let Some(node) = self.nodes.iter_mut().find(|node| node.id == id) else { return };
        node.failed_until = None;
        let (name, endpoint) = (node.name.clone(), node.endpoint.clone());
        let facts = node.facts.clone();
        let timeline = facts.as_ref().and_then(|facts| facts.timeline);
        self.memory.system = self.memory.system.or(facts.as_ref().and_then(|f| f.system));
        self.memory.timeline = self.memory.timeline.max(timeline);
        self.memory.writer = Some(id);
        (self.memory.server, self.memory.written, self.memory.position) = (None, None, None);
        facts.iter().for_each(|facts| self.memory.learn_writer(facts));
        let since = match &self.state {
            State::Searching(search) => search.since,
            State::Unknown | State::Stable(_) | State::Suspect(..) => self.told.started,
        };
        self.state = State::Stable(id);
        self.published.epoch += 1;
        self.records.seated = Some(now);
        let (database, took) = (&self.options.database, now.saturating_duration_since(since));
        let line = timeline.map_or("unknown".into(), |timeline| timeline.to_string());
        let text = format!(
            "cluster \"{database}\": new writer {name} ({endpoint}), timeline {line}, after {} ms",
            took.as_millis()
        );
        if let Some(open) = self.records.open() {
            open.new.clone_from(&name);
            open.timelines.1 = timeline;
            open.elected = Some(now);
            if open.kind == Kind::Failover && open.old == name {
                open.kind = Kind::Restart;
            }
        }
        self.records.note(now, || format!("node {name} is elected"));
        self.elected_during_operation(now, id);
        self.publish(now);
        self.log(Severity::Log, text);
        let odd = match oddity {
            Oddity::None => None,
            Oddity::SwappedOnOneTimeline => Some("writer changed without a new timeline"),
            Oddity::TakenUp => Some("the writer goes on at another address on its timeline"),
        };
        if let Some(odd) = odd {
            let text = format!("cluster \"{}\": {odd}", self.options.database);
            self.log(Severity::Warning, text);
        }
        self.effect(Effect::Remember(self.memory.system, self.memory.timeline));
        // Clients that waited come first.
        self.discovery.due = Some(now + SETTLE);
        self.nodes.iter_mut().for_each(|node: &mut Node| node.hurry(now));
    }
}

/// Time after an election before the topology is read again.
const SETTLE: Duration = Duration::from_millis(50);
