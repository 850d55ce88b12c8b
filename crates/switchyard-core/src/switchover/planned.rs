//! What operators want of a cluster: HOLD, RELEASE and SWITCHOVER.
//!
//! ```text
//! None ──HOLD──► Hold ──RELEASE, or another node is elected──► None
//! None, Hold ──SWITCHOVER──► Drain ─► CatchUp ─► Promote ──elected──► Verify ─► None
//! ```
//!
//! Until the promotion everything can be undone, and a failure releases clients on the old writer.
//! From then on only an election ends the hold. Not here: how transactions are counted and how a
//! node is promoted, which the shell does. Invariants: every command is answered once; while an
//! operation lasts, nothing new reaches the writer.

use std::time::{Duration, Instant};

use super::cluster::{Cluster, Effect};
use super::node::{Node, Standing};
use super::options::{DrainAction, PromoteBy};
use super::probe::{Proof, SignalKind, Stream};
use super::snapshot::{Change, Kind};
use super::view::{Gate, NodeId};

/// Identity of an operator's command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CommandId(pub u64);

/// Identity of a promotion or of the check after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PromotionId(pub u64);

/// A command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Ask everything again.
    Probe,
    /// Nothing new reaches the writer.
    Hold,
    /// The end of a hold.
    Release,
    /// Another writer: this node, or the best reader.
    Switchover(Option<String>),
    /// The end of a switchover that has not promoted anything.
    Abort,
}

/// What is under way.
#[derive(Clone, Debug)]
pub(super) enum Operation {
    /// Nothing.
    None,
    /// HOLD, which is answered when nothing runs on the writer.
    Hold { since: Instant, asker: Option<CommandId>, drain: Drain },
    /// SWITCHOVER.
    Switch(Box<Switch>),
}

/// Transactions that have to end.
#[derive(Clone, Copy, Debug)]
pub(super) struct Drain {
    deadline: Instant,
    count: Count,
    running: usize,
}

/// The question how many there are.
#[derive(Clone, Copy, Debug)]
enum Count {
    Due(Instant),
    Asked(u64),
}

#[derive(Clone, Debug)]
pub(super) struct Switch {
    asker: CommandId,
    since: Instant,
    old: NodeId,
    target: NodeId,
    step: Step,
}

/// How far a switchover is.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// Running transactions end.
    Drain(Drain),
    /// The target replays what the writer wrote; the goal is known once the writer was asked.
    CatchUp { since: Instant, goal: Option<u64>, deadline: Instant },
    /// Somebody promotes; an election ends it.
    Promote { id: PromotionId, since: Instant, deadline: Instant, by: PromoteBy },
    /// The new writer shows that it takes writes.
    Verify { id: PromotionId, since: Instant, deadline: Instant, ask: Option<Instant> },
}

impl Operation {
    pub(super) fn gate(&self) -> Gate {
        match self {
            Operation::None => Gate::Open,
            Operation::Hold { .. } | Operation::Switch(_) => Gate::Held,
        }
    }

    /// Since when probes are fast because of it.
    pub(super) fn since(&self) -> Option<Instant> {
        match self {
            Operation::None => None,
            Operation::Hold { since, .. } => Some(*since),
            Operation::Switch(switch) => Some(match switch.step {
                Step::Drain(_) => switch.since,
                Step::CatchUp { since, .. }
                | Step::Promote { since, .. }
                | Step::Verify { since, .. } => since,
            }),
        }
    }

    /// State of SHOW CLUSTERS.
    pub(super) fn text(&self) -> &'static str {
        match self {
            Operation::Hold { asker: Some(_), .. } => "draining",
            Operation::Switch(switch) if matches!(switch.step, Step::Drain(_)) => "draining",
            Operation::None | Operation::Hold { .. } | Operation::Switch(_) => "holding",
        }
    }
}

impl Drain {
    fn new(now: Instant, patience: Duration) -> Self {
        Drain { deadline: now + patience, count: Count::Due(now), running: 0 }
    }

    fn due(&self) -> Instant {
        match self.count {
            Count::Due(at) => at.min(self.deadline),
            Count::Asked(_) => self.deadline,
        }
    }
}

/// Inputs.
impl Cluster {
    /// An operator wants something; `Effect::Answer` follows once.
    pub fn handle_command(&mut self, now: Instant, id: CommandId, command: Command) {
        let result = match command {
            Command::Probe => {
                self.handle_signal(now, None, SignalKind::Operator);
                Ok(Some(id))
            }
            Command::Hold => self.hold(now, id),
            Command::Release => self.release(now).map(|()| Some(id)),
            Command::Switchover(target) => self.switch(now, id, target.as_deref()),
            Command::Abort => match &self.operation {
                Operation::Switch(switch) if !matches!(switch.step, Step::Verify { .. }) => {
                    let promoted = matches!(
                        switch.step,
                        Step::Promote { by: PromoteBy::Command | PromoteBy::Sql, .. }
                    );
                    if promoted {
                        Err("no switchover in progress".into())
                    } else {
                        self.give_up(now, "switchover aborted: operator", Kind::Aborted);
                        Ok(Some(id))
                    }
                }
                Operation::None | Operation::Hold { .. } | Operation::Switch(_) => {
                    Err("no switchover in progress".into())
                }
            },
        };
        match result {
            Ok(None) => {}
            Ok(Some(id)) => self.effect(Effect::Answer(id, Ok(()))),
            Err(text) => self.effect(Effect::Answer(id, Err(text))),
        }
        self.handle_timeout(now);
    }

    /// So many transactions run on the writer.
    pub fn handle_running(&mut self, now: Instant, round: u64, running: usize) {
        let drain = match &mut self.operation {
            Operation::None => return,
            Operation::Hold { drain, .. } => drain,
            Operation::Switch(switch) => match &mut switch.step {
                Step::Drain(drain) => drain,
                Step::CatchUp { .. } | Step::Promote { .. } | Step::Verify { .. } => return,
            },
        };
        if !matches!(drain.count, Count::Asked(asked) if asked == round) {
            return;
        }
        drain.running = running;
        drain.count = Count::Due(now + RECOUNT);
        if running == 0 {
            self.drained(now);
        }
        self.handle_timeout(now);
    }

    /// A promotion has ended, or could not be begun.
    pub fn handle_promoted(&mut self, now: Instant, id: PromotionId, result: Result<(), String>) {
        let Operation::Switch(switch) = &self.operation else { return };
        if !matches!(switch.step, Step::Promote { id: asked, .. } if asked == id) {
            return;
        }
        match result {
            Ok(()) => {
                self.records.note(now, || "promotion has returned".into());
                self.nodes.iter_mut().for_each(|node| node.want_full(now));
            }
            Err(text) => self.promotion_failed(now, &text),
        }
        self.handle_timeout(now);
    }

    /// Whether the new writer takes writes.
    pub fn handle_verified(&mut self, now: Instant, id: PromotionId, result: Result<(), String>) {
        let Operation::Switch(switch) = &mut self.operation else { return };
        let Step::Verify { id: asked, deadline, ask, .. } = &mut switch.step else { return };
        if *asked != id {
            return;
        }
        match result {
            Ok(()) => self.finish(now, Ok(()), "ok"),
            Err(_) if now < *deadline => *ask = Some(now + REVERIFY),
            Err(text) => {
                let text = format!("promotion failed: {text}");
                self.finish(now, Err(text.clone()), &text);
            }
        }
        self.handle_timeout(now);
    }
}

/// Steps.
impl Cluster {
    pub(super) fn operation_due(&self) -> Option<Instant> {
        match &self.operation {
            Operation::None | Operation::Hold { asker: None, .. } => None,
            Operation::Hold { drain, .. } => Some(drain.due()),
            Operation::Switch(switch) => Some(match &switch.step {
                Step::Drain(drain) => drain.due(),
                Step::CatchUp { deadline, .. } | Step::Promote { deadline, .. } => *deadline,
                Step::Verify { deadline, ask, .. } => ask.map_or(*deadline, |at| at.min(*deadline)),
            }),
        }
    }

    /// Does what is due.
    pub(super) fn proceed(&mut self, now: Instant) {
        match &mut self.operation {
            Operation::None | Operation::Hold { asker: None, .. } => {}
            Operation::Hold { drain, .. } if now >= drain.deadline => self.drained(now),
            Operation::Hold { drain, .. } => {
                let round = due_count(drain, now, &mut self.minted.questions);
                round.into_iter().for_each(|round| self.effect(Effect::Count(round)));
            }
            Operation::Switch(switch) => match &mut switch.step {
                Step::Drain(drain) if now >= drain.deadline => self.drain_is_over(now),
                Step::Drain(drain) => {
                    let round = due_count(drain, now, &mut self.minted.questions);
                    round.into_iter().for_each(|round| self.effect(Effect::Count(round)));
                }
                Step::CatchUp { .. } => self.catch_up(now),
                Step::Promote { deadline, by, .. } if now >= *deadline => match by {
                    PromoteBy::Others => {
                        let text = "switchover aborted: nobody has promoted a standby";
                        self.give_up(now, text, Kind::Aborted);
                    }
                    PromoteBy::Command | PromoteBy::Sql => {
                        self.promotion_failed(now, "no new writer in time");
                    }
                },
                Step::Promote { .. } => {}
                Step::Verify { deadline, .. } if now >= *deadline => {
                    let text = "promotion failed: the new writer takes no transactions";
                    self.finish(now, Err(text.into()), text);
                }
                Step::Verify { id, ask, .. } if ask.is_some_and(|at| at <= now) => {
                    *ask = None;
                    let id = *id;
                    if let Some(node) = self.writer() {
                        self.effect(Effect::Verify { id, node });
                    }
                }
                Step::Verify { .. } => {}
            },
        }
    }

    fn hold(&mut self, now: Instant, id: CommandId) -> Result<Option<CommandId>, String> {
        if !matches!(self.operation, Operation::None) {
            return Err("already holding".into());
        }
        self.begin_record(now, "HOLD");
        let drain = Drain::new(now, self.options.plan.drain_timeout);
        let asker = self.writer().map(|_| id);
        self.operation = Operation::Hold { since: now, asker, drain };
        self.hurry(now);
        Ok(if asker.is_none() { Some(id) } else { None })
    }

    fn release(&mut self, now: Instant) -> Result<(), String> {
        let Operation::Hold { asker, .. } = self.operation else {
            let database = &self.options.database;
            return Err(format!("database \"{database}\" is not on hold"));
        };
        self.operation = Operation::None;
        if let Some(asker) = asker {
            self.effect(Effect::Answer(asker, Ok(())));
        }
        self.records.note(now, || "RELEASE".into());
        Ok(())
    }

    fn switch(
        &mut self,
        now: Instant,
        id: CommandId,
        wanted: Option<&str>,
    ) -> Result<Option<CommandId>, String> {
        if matches!(self.operation, Operation::Switch(_)) {
            return Err("switchover already in progress".into());
        }
        let database = self.options.database.clone();
        let Some(old) = self.writer() else {
            return Err(format!("writer of \"{database}\" is not known"));
        };
        let fit = |node: &&Node| {
            let facts = node.facts.as_ref();
            let broken = facts.is_none_or(|facts| facts.stream == Stream::Broken);
            let foreign = self.memory.foreign(facts.and_then(|facts| facts.system));
            node.standing == Standing::Reader && node.failures.run == 0 && !broken && !foreign
        };
        let target = match wanted {
            Some(name) => {
                let view = self.published.by_name(name).map(|node| node.id);
                let node = self.nodes.iter().find(|node| Some(node.id) == view).filter(fit);
                node.ok_or(format!("node \"{name}\" is not a healthy standby of \"{database}\""))?
            }
            None => {
                let position = |node: &&Node| node.facts.as_ref().and_then(|facts| facts.lsn);
                let best = self.nodes.iter().filter(fit).max_by_key(position);
                best.ok_or("switchover aborted: no healthy standby")?
            }
        };
        let target = target.id;
        if let Operation::Hold { asker: Some(asker), .. } = self.operation {
            self.effect(Effect::Answer(asker, Ok(())));
        }
        self.begin_record(now, "SWITCHOVER");
        self.result("draining");
        let step = Step::Drain(Drain::new(now, self.options.plan.drain_timeout));
        self.operation =
            Operation::Switch(Box::new(Switch { asker: id, since: now, old, target, step }));
        self.hurry(now);
        Ok(None)
    }

    fn begin_record(&mut self, now: Instant, trigger: &str) {
        if self.records.open().is_some_and(|open| open.kind == Kind::Planned) {
            return;
        }
        // A writer that is lost at this moment may be the writer again: that ends no hold.
        let old = self.writer().or(self.memory.writer);
        let old = old.map(|id| self.name(id)).unwrap_or_default();
        self.published.event = self.records.begin(Change {
            id: 0,
            kind: Kind::Planned,
            trigger: trigger.into(),
            old,
            new: String::new(),
            timelines: (self.memory.timeline, None),
            began: now,
            detected: now,
            elected: None,
            released: None,
            result: "holding".into(),
            journal: Vec::new(),
        });
    }

    fn result(&mut self, text: &str) {
        if let Some(open) = self.records.open() {
            text.clone_into(&mut open.result);
        }
    }

    fn drained(&mut self, now: Instant) {
        let deadline = now + self.options.plan.drain_timeout;
        match &mut self.operation {
            Operation::None => {}
            Operation::Hold { asker, .. } => {
                if let Some(asker) = asker.take() {
                    self.effect(Effect::Answer(asker, Ok(())));
                }
            }
            Operation::Switch(switch) => {
                switch.step = Step::CatchUp { since: now, goal: None, deadline };
                let nodes = [switch.old, switch.target];
                let asked = self.nodes.iter_mut().filter(|node| nodes.contains(&node.id));
                asked.for_each(|node| node.want_full(now));
                self.records.note(now, || "nothing runs on the old writer".into());
                self.result("catching up");
            }
        }
    }

    fn drain_is_over(&mut self, now: Instant) {
        let Operation::Switch(switch) = &mut self.operation else { return };
        let Step::Drain(drain) = &mut switch.step else { return };
        let (running, old) = (drain.running, switch.old);
        match self.options.plan.drain_action {
            DrainAction::Abort => {
                let text = format!("switchover aborted: {running} transactions still running");
                self.give_up(now, &text, Kind::Aborted);
            }
            DrainAction::Kill => {
                self.records.note(now, || format!("{running} transactions are ended"));
                self.effect(Effect::Kill(old));
                self.drained(now);
            }
        }
    }

    fn catch_up(&mut self, now: Instant) {
        let Operation::Switch(switch) = &mut self.operation else { return };
        let Step::CatchUp { since, goal, deadline } = &mut switch.step else { return };
        let (old, target) = (switch.old, switch.target);
        let told = |id: NodeId, after: Instant| {
            let node = self.nodes.iter().find(|node| node.id == id)?;
            let heard = node.meters.heard_full.is_some_and(|at| at >= after);
            node.facts.as_ref().filter(|_| heard)
        };
        if goal.is_none() {
            let Some(facts) = told(old, *since) else {
                return self.catch_up_in_time(now);
            };
            // Without the right to ask, the position is left to the promotion.
            *goal = Some(facts.lsn.unwrap_or(0));
        }
        let reached = told(target, *since).is_some_and(|facts| facts.lsn >= *goal);
        let unknown = *goal == Some(0);
        if reached || unknown {
            return self.promote(now);
        }
        let deadline = *deadline;
        if now >= deadline {
            return self.catch_up_in_time(now);
        }
        let node = self.nodes.iter_mut().find(|node| node.id == target);
        node.into_iter().for_each(Node::want_full_next);
    }

    fn catch_up_in_time(&mut self, now: Instant) {
        let Operation::Switch(switch) = &self.operation else { return };
        let Step::CatchUp { deadline, .. } = switch.step else { return };
        if now >= deadline {
            let name = self.name(switch.target);
            let text = format!("switchover aborted: node {name} does not catch up");
            self.give_up(now, &text, Kind::Aborted);
        }
    }

    fn promote(&mut self, now: Instant) {
        let (by, deadline) = (self.options.plan.promote, now + self.options.plan.patience);
        let Operation::Switch(switch) = &mut self.operation else { return };
        self.minted.questions += 1;
        let id = PromotionId(self.minted.questions);
        switch.step = Step::Promote { id, since: now, deadline, by };
        let (old, target) = (switch.old, switch.target);
        let old = self.name(old);
        let Some(node) = self.nodes.iter().find(|node| node.id == target) else {
            return self.give_up(now, "switchover aborted: the target is gone", Kind::Aborted);
        };
        let (name, endpoint) = (node.name.clone(), node.endpoint.clone());
        match by {
            PromoteBy::Others => {
                self.records.note(now, || "waiting for promotion".into());
                self.result("waiting for promotion");
            }
            PromoteBy::Command | PromoteBy::Sql => {
                self.records.note(now, || format!("node {name} is promoted"));
                self.result("promoting");
                self.effect(Effect::Promote { id, node: target, name, endpoint, old, deadline });
            }
        }
    }

    /// The promotion has failed: an election decides who writes.
    fn promotion_failed(&mut self, now: Instant, text: &str) {
        let text = format!("promotion failed: {text}");
        if let Some(writer) = self.writer() {
            self.doubt_all(now, writer);
        }
        self.finish(now, Err(text.clone()), &text);
    }

    /// The switchover comes to nothing; the old writer goes on.
    fn give_up(&mut self, now: Instant, text: &str, kind: Kind) {
        if let Some(open) = self.records.open() {
            open.kind = kind;
            open.new.clone_from(&open.old.clone());
        }
        self.finish(now, Err(text.into()), text);
    }

    /// Answers the operator and ends the operation.
    fn finish(&mut self, now: Instant, answer: Result<(), String>, result: &str) {
        let Operation::Switch(switch) = std::mem::replace(&mut self.operation, Operation::None)
        else {
            return;
        };
        self.records.note(now, || result.to_owned());
        self.result(result);
        self.publish(now);
        self.effect(Effect::Answer(switch.asker, answer));
    }

    /// The writer was lost while an operation was under way.
    pub(super) fn lost_during_operation(&mut self, now: Instant, reason: &str) {
        let Operation::Switch(switch) = &self.operation else { return };
        match switch.step {
            Step::Drain(_) | Step::CatchUp { .. } => {
                let text = format!("switchover aborted: writer lost ({reason})");
                if let Some(open) = self.records.open() {
                    open.kind = Kind::Failover;
                }
                self.finish(now, Err(text), "");
            }
            Step::Verify { .. } => {
                let text = format!("switchover aborted: new writer lost ({reason})");
                self.finish(now, Err(text), "");
            }
            Step::Promote { .. } => {}
        }
    }

    /// A writer was elected while an operation was under way.
    pub(super) fn elected_during_operation(&mut self, now: Instant, node: NodeId) {
        let changed = self.records.open().is_some_and(|open| open.old != open.new);
        let facts = self.nodes.iter().find(|known| known.id == node).and_then(|n| n.facts.as_ref());
        let proven = facts.is_some_and(|facts| facts.proof == Proof::Writes);
        match &mut self.operation {
            Operation::None => {}
            Operation::Hold { asker, .. } if changed => {
                if let Some(asker) = asker.take() {
                    self.effect(Effect::Answer(asker, Ok(())));
                }
                self.operation = Operation::None;
                self.result("ok");
            }
            Operation::Hold { .. } => {}
            Operation::Switch(switch) if node == switch.old => {}
            // The answer that elected it has shown that it takes transactions that write.
            Operation::Switch(_) if proven => self.finish(now, Ok(()), "ok"),
            Operation::Switch(switch) => {
                self.minted.questions += 1;
                let id = PromotionId(self.minted.questions);
                let deadline = now + VERIFY_PATIENCE;
                switch.step = Step::Verify { id, since: now, deadline, ask: Some(now) };
                self.result("verifying");
            }
        }
    }
}

fn due_count(drain: &mut Drain, now: Instant, minted: &mut u64) -> Option<u64> {
    match drain.count {
        Count::Due(at) if at <= now => {
            *minted += 1;
            drain.count = Count::Asked(*minted);
            Some(*minted)
        }
        Count::Due(_) | Count::Asked(_) => None,
    }
}

/// Pause between two counts of running transactions.
const RECOUNT: Duration = Duration::from_millis(1);
/// Pause before the new writer is asked again for a transaction.
const REVERIFY: Duration = Duration::from_millis(5);
/// How long the new writer may refuse transactions.
const VERIFY_PATIENCE: Duration = Duration::from_secs(5);
