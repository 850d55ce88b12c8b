//! Where a client has been: the pools that its messages were routed to.

use crate::worker::client::Place;

/// What a client that was routed away from its own database carries.
#[derive(Debug, Default)]
pub struct Routes {
    /// Where it goes once the refusal under way has been sent.
    pub later: Option<Place>,
}
