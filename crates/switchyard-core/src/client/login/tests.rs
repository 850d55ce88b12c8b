//! Dialogues with users who can log in and users who cannot.

use proptest::prelude::*;
use switchyard_auth::scram::{ClientExchange, Credential, keys};
use switchyard_wire::read::{self, Authentication as Asked};

use super::*;

const METHODS: [Method; 3] = [Method::Plain, Method::Md5([1, 2, 3, 4]), Method::Scram];

fn material() -> Material {
    let (salt, mock_salt) = (b"salt".to_vec(), b"mock".to_vec());
    Material { nonce: "ours".into(), salt, mock_salt, iterations: 3 }
}

fn login(method: Method, secret: Option<&[u8]>) -> Login {
    let known = secret.map(|text| Arc::new(Known::new(Secret::parse(text))));
    Login::new(method, "u", known, material())
}

/// The first message of SCRAM, answered: its salt's first letters.
fn scram_salt(secret: Option<&[u8]>) -> String {
    let mut login = login(Method::Scram, secret);
    let mut message = Vec::new();
    build::sasl_initial(&mut message, "SCRAM-SHA-256", b"n,,n=,r=abc");
    let mut out = Vec::new();
    assert_eq!(login.handle_message(frontend::PASSWORD, &message[5..], &mut out), Step::More);
    let Some(Asked::SaslContinue(first)) = read::authentication(&out[5..]) else {
        panic!("a first message of the server")
    };
    String::from_utf8_lossy(first).split(",s=").nth(1).unwrap_or_default().to_owned()
}

#[test]
fn users_who_cannot_log_in_are_asked_the_same() {
    for method in METHODS {
        let ask = |secret| {
            let mut out = Vec::new();
            login(method, secret).ask(&mut out);
            out
        };
        assert_eq!(ask(None), ask(Some(b"pw")));
        assert_eq!(ask(None), ask(Some(b"")));
    }
    assert_eq!(scram_salt(None), "bW9jaw==,i=3");
    assert_eq!(scram_salt(Some(b"")), "bW9jaw==,i=3");
    assert_eq!(scram_salt(Some(b"pw")), "c2FsdA==,i=3");
}

#[test]
fn passwords_of_every_kind_and_length() {
    let long = vec![b'x'; 65_530];
    let verifier = keys(b"pw", b"salt", 5).stored(b"salt".to_vec(), 5);
    let known = [
        (Secret::Plain(b"pw".into()), &b"pw"[..], true),
        (Secret::Plain(long.clone()), &long, true),
        (Secret::Plain(long.clone()), &long[1..], false),
        (Secret::Md5(md5::secret(b"u", b"pw")), b"pw", true),
        (Secret::Md5(md5::secret(b"v", b"pw")), b"pw", false),
        (Secret::Scram(b"as stored".into(), verifier), b"pw", true),
        (Secret::Empty, b"pw", false),
    ];
    for (secret, typed, right) in known {
        let known = Some(Arc::new(Known::new(secret)));
        let mut login = Login::new(Method::Plain, "u", known, material());
        let body = [typed, b"\0"].concat();
        let step = login.handle_message(frontend::PASSWORD, &body, &mut Vec::new());
        let wanted =
            if right { Step::Accepted(None) } else { Step::Refused(None, PASSWORD_FAILED) };
        assert_eq!(step, wanted);
    }
}

#[test]
fn keys_come_from_stored_verifiers_only() {
    let verifier = keys(b"pw", b"salt", 5).stored(b"salt".to_vec(), 5);
    let stored = Secret::Scram(b"as stored".into(), verifier);
    for (secret, revealed) in
        [(stored, Some(keys(b"pw", b"salt", 5))), (Secret::Plain(b"pw".into()), None)]
    {
        let known = Some(Arc::new(Known::new(secret)));
        let mut login = Login::new(Method::Scram, "u", known, material());
        let mut client = ClientExchange::new(
            Credential::Password(b"pw".into()),
            "abc".into(),
            Binding::Impossible,
        );
        let mut message = Vec::new();
        build::sasl_initial(&mut message, "SCRAM-SHA-256", &client.first());
        let mut out = Vec::new();
        login.handle_message(frontend::PASSWORD, &message[5..], &mut out);
        let Some(Asked::SaslContinue(first)) = read::authentication(&out[5..]) else {
            panic!("a first message of the server")
        };
        let last = client.last(first).expect("a last message");
        let step = login.handle_message(frontend::PASSWORD, &last, &mut Vec::new());
        assert_eq!(step, Step::Accepted(revealed));
    }
}

#[test]
fn empty_passwords_and_misplaced_messages() {
    for method in [Method::Plain, Method::Md5([0; 4])] {
        let step = login(method, Some(b"pw")).handle_message(b'p', b"\0", &mut Vec::new());
        assert_eq!(step, Step::Refused(None, "empty password returned by client"));
    }
    for method in METHODS {
        let step = login(method, Some(b"pw")).handle_message(b'Q', b"x\0", &mut Vec::new());
        assert_eq!(step, Step::Misplaced);
    }
    let mut login = login(Method::Scram, Some(b"pw"));
    let mut message = Vec::new();
    build::sasl_initial(&mut message, "SCRAM-SHA-1", b"n,,n=,r=abc");
    let step = login.handle_message(b'p', &message[5..], &mut Vec::new());
    let text = "client selected an invalid SASL authentication mechanism";
    assert_eq!(step, Step::Refused(None, text));
}

/// A length of -1 stands for no data, and lengths may promise more than there is.
#[test]
fn lengths_inside_messages_are_not_trusted() {
    for len in [-1, -2, 3, 12, i32::MAX, i32::MIN] {
        for size in [0, 11, 60_000] {
            let mut login = login(Method::Scram, Some(b"pw"));
            let data = [b"n,,n=,r=".to_vec(), vec![b'a'; size]].concat();
            let body = [b"SCRAM-SHA-256\0", &len.to_be_bytes()[..], &data].concat();
            let step = login.handle_message(b'p', &body, &mut Vec::new());
            assert!(matches!(step, Step::Refused(Some(_), SASL_FAILED)), "{len} {size} {step:?}");
        }
    }
}

proptest! {
    #[test]
    fn no_dialogue_panics(
        method in 0usize..3,
        secret in proptest::option::of("(md5)?[a-f0-9]{0,32}"),
        messages in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 1..4),
    ) {
        let mut login = login(METHODS[method], secret.as_deref().map(str::as_bytes));
        for message in messages {
            if login.handle_message(b'p', &message, &mut Vec::new()) != Step::More {
                break;
            }
        }
    }
}
