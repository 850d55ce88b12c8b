//! A client's stream in its session, linked to a server.
#![no_main]

use libfuzzer_sys::fuzz_target;
use switchyard_core::client::session::{
    Detour, Flow, Hooking, Loyalty, Misuse, Reprepare, Rules, Session, Simple, Stop, Tracking,
    Untracked,
};
use switchyard_core::client::replay::Keeping;
use switchyard_core::params::{Params, Tracked};
use switchyard_core::prepared::Registry;
use switchyard_core::server::link::Link;

fuzz_target!(|data: &[u8]| {
    let Some((choice, data)) = data.split_first() else { return };
    let (tracked, registry) = (Tracked::new(&[]), Registry::default());
    let rules = Rules {
        tracking: if choice & 1 == 0 { Tracking::Off } else { Tracking::On(3) },
        hooking: Hooking::Off,
        detour: Detour::Stays,
        loyalty: if choice & 2 == 0 { Loyalty::Stays } else { Loyalty::Leaves },
        misuse: Misuse::Closes,
        reprepare: Reprepare::Off,
        simple: Simple::Allowed,
        untracked: Untracked::Ignore,
        tracked: &tracked,
        keeping: if choice & 4 == 0 { Keeping::Off } else { Keeping::On },
        message_max: 1 << 20,
        registry: &registry,
        outstanding_max: 1000,
    };
    let mut session = Session::new(Params::unset(&tracked));
    let mut link = Link::new(Params::unset(&tracked));
    let mut flow = Flow::default();
    let mut at = 0;
    while at < data.len() {
        let (used, stop) = session.advance(Some(&mut link), &data[at..], &mut flow, &rules);
        link.check();
        flow.server.clear();
        flow.client.clear();
        at += used;
        if used == 0 || stop != Stop::More {
            return;
        }
    }
});
