//! Identities that machines hand out and shells carry around.

/// A worker thread, counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WorkerId(pub u16);

/// A client that waits in a pool's queue: its worker and its key there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket {
    /// Where the client lives.
    pub worker: WorkerId,
    /// The worker's key of the client, as bits.
    pub client: u64,
}

/// A server connection within its pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServerId(pub u64);

/// A node of a pool's cluster; pools without a cluster have the one node 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LaneId(pub u32);
