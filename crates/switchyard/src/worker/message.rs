//! What other threads ask of a worker.

use std::net::SocketAddr;
use std::sync::Arc;

use switchyard_auth::scram::Keys;
use switchyard_core::ids::{LaneId, Ticket, WorkerId};
use switchyard_io::{Accepted, Key};

use crate::clusters::Census;
use crate::entries::Entry;
use crate::hooks::{Host, Notice};
use crate::peers::PeerPool;
use crate::pools::{Order, SharedPool};
use crate::worker::Worker;
use crate::worker::cancel_request::{Requester, Room};
use crate::worker::close::Farewell;
use crate::worker::console::gather::Gathering;
use crate::worker::console::set::Outcome;

/// A message to a worker.
#[derive(Debug)]
pub enum Message {
    /// A client that the accepting worker placed here, with its number.
    Client(Accepted, u64),
    /// An order of a pool.
    Order(Arc<SharedPool>, Order),
    /// A server of this worker was taken over by another: its slot is free.
    Vacate(Key),
    /// Answer of a name lookup for the connection of this number.
    Resolved(u64, Vec<SocketAddr>),
    /// Keys for the login of this server were derived.
    Derived(Key, Box<Keys>),
    /// A name does not stand for these addresses any more.
    AddressesLost(Arc<str>, Arc<[SocketAddr]>),
    /// A cancel request for a client of this worker, from the connection behind the ticket.
    Cancel(Ticket, Requester),
    /// A cancel request of a client of this worker has found its server.
    CancelTaken(Ticket, Arc<SharedPool>),
    /// It is with that server, carried by the connection of this number.
    CancelSent(Ticket, u64),
    /// A cancel request of a client of this worker has ended; the reason in the log.
    CancelDone(Ticket, &'static str),
    /// The connection behind a cancel request is gone.
    CancelGone(Ticket),
    /// A connection that carried a cancel request there has ended: one that waits may go.
    CancelRoom(Room),
    /// This is no peer any more.
    PeerGone(Arc<PeerPool>),
    /// The cluster of an entry was published anew.
    View(Arc<Entry>),
    /// An entry is no cluster any more.
    Ordinary(Arc<Entry>),
    /// News of the processes that run hooks.
    Hook(Arc<Host>, Notice),
    /// Count the transactions on the writer in session pools.
    Count(Arc<Census>),
    /// Close the servers of a node that are linked to clients of an entry.
    Cut(Arc<Entry>, LaneId),
    /// A command to a cluster has ended.
    Answered(Ticket, Result<(), String>),
    /// The settings were replaced.
    Settings,
    /// Answer a question of a console.
    Gather(Arc<Gathering>),
    /// A gathering is complete, or a waiting command may be answered.
    Gathered(Ticket, Arc<Gathering>),
    /// Close the clients and servers of an entry.
    Kill(Arc<Entry>, &'static str),
    /// A reload that a console asked for has ended; whether the file was valid.
    Reloaded(Ticket, bool),
    /// A SET of a console is in force, or not.
    Set(Ticket, Outcome),
    /// A SUSPEND has ended.
    WakeUp,
    /// Close the TCP listeners, or all of them.
    StopListening(Listeners),
    /// The forced user of an entry has changed.
    Rehome(Arc<Entry>),
    /// Clients that would wait for a server are refused from now on.
    RefuseWaiting,
}

/// Which listening sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listeners {
    /// TCP ones.
    Tcp,
    /// All.
    All,
}

impl Worker {
    /// Acts on a message.
    pub(super) fn receive(&mut self, message: Message) {
        match message {
            Message::Client(accepted, number) => self.adopt(accepted, number),
            Message::Order(pool, order) => self.obey(pool, order),
            Message::Vacate(slot) => {
                self.servers.remove(slot);
            }
            Message::Resolved(number, addresses) => self.resolved(number, addresses),
            Message::Derived(key, keys) => self.derived(key, &keys),
            Message::AddressesLost(host, lost) => self.addresses_lost(&host, &lost),
            Message::Cancel(target, requester) => self.cancel_client(target, requester),
            Message::CancelTaken(requester, pool) => self.cancel_taken(requester, pool),
            Message::CancelSent(requester, number) => self.cancel_sent(requester, number),
            Message::CancelGone(requester) => self.canceller_gone(requester),
            Message::CancelRoom(room) => self.go_on_canceling(&room),
            Message::PeerGone(pool) => self.peer_gone(&pool),
            Message::CancelDone(requester, reason) => {
                let key = Key::from_bits(requester.client);
                self.close_client(key, reason, Farewell::Silent);
            }
            Message::Ordinary(entry) => self.go_on(&entry),
            Message::View(entry) => {
                self.forget_verdicts();
                self.view_changed(&entry);
            }
            Message::Count(census) => self.take_census(&census),
            Message::Cut(entry, lane) => self.cut(&entry, lane),
            Message::Answered(console, result) => self.answered(console, result),
            Message::Settings => {
                self.snapshot = self.shared.snapshot();
                self.take_hooks();
                self.tune_listeners();
                self.rules = self.shared.rules();
                self.look_at_all_later();
            }
            Message::Hook(host, notice) => self.hook_notice(&host, notice),
            Message::Gather(gathering) => self.gather(&gathering),
            Message::Gathered(console, gathering) => self.gathered(console, &gathering),
            Message::Kill(entry, reason) => self.kill(&entry, reason),
            Message::Reloaded(console, valid) => self.reloaded(console, valid),
            Message::Set(console, done) => self.value_set(console, done),
            Message::Rehome(entry) => self.rehome_waiting(&entry),
            Message::WakeUp => self.wake_up(),
            Message::StopListening(which) => self.stop_listening(which),
            Message::RefuseWaiting => self.refuse_waiting(),
        }
    }

    /// Sends to a worker, this one included.
    pub(super) fn send(&self, worker: WorkerId, message: Message) {
        self.shared.send(worker, message);
    }
}
