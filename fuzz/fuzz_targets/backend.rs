//! A server's stream: its login, the answer to auth_query, and what it says when it is linked.
#![no_main]

use libfuzzer_sys::fuzz_target;
use switchyard_auth::secret::Secret;
use switchyard_core::batch::Batch;
use switchyard_core::params::{Params, Tracked};
use switchyard_core::server::link::Link;
use switchyard_core::server::login::{Credentials, ServerLogin, ServerLoginStep};
use switchyard_core::server::lookup::{Lookup, LookupStep};
use switchyard_core::server::request::Request;
use switchyard_wire::frame;

fuzz_target!(|data: &[u8]| {
    let Some((requests, data)) = data.split_first() else { return };
    let credentials = Credentials {
        user: "u".into(),
        secret: Some(Secret::parse(b"pw")),
        keys: None,
        nonce: "nonce".into(),
    };
    let mut login = ServerLogin::new(Vec::new(), credentials);
    let mut rest = data;
    while let Ok(Some((head, body, tail))) = frame::split(rest) {
        let slow = body.windows(2).any(|part| part == b"i=");
        if slow
            || !matches!(
                login.handle_message(head.tag, body, &mut Vec::new()),
                Ok(ServerLoginStep::More)
            )
        {
            break;
        }
        rest = tail;
    }
    let mut lookup = Lookup::default();
    let mut rest = data;
    while let Ok(Some((head, body, tail))) = frame::split(rest) {
        if !matches!(lookup.handle_message(head.tag, body), Ok(LookupStep::More)) {
            break;
        }
        rest = tail;
    }
    let tracked = Tracked::new(&[]);
    let mut link = Link::new(Params::unset(&tracked));
    for _ in 0..requests % 4 {
        link.sent(Request::Query);
    }
    let mut at = 0;
    while at < data.len() {
        let received = link.receive(&data[at..], &mut Batch::default(), &tracked, None);
        assert!(received.consumed <= data.len() - at);
        if received.consumed == 0 || received.failure.is_some() {
            return;
        }
        link.check();
        at += received.consumed;
    }
});
