//! Readers of message bodies ("Message Formats"). Each takes the body behind the header and
//! answers `None` when the body is not what the format says.

/// A zero-terminated string at the start of `buf`, and what follows it.
pub fn cstr(buf: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = memchr::memchr(0, buf)?;
    Some((&buf[..end], &buf[end + 1..]))
}

fn word(buf: &[u8]) -> Option<(u32, &[u8])> {
    let (head, rest) = buf.split_first_chunk::<4>()?;
    Some((u32::from_be_bytes(*head), rest))
}

/// Fields of an ErrorResponse or NoticeResponse: (type, text).
pub fn fields(body: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    let mut rest = body;
    std::iter::from_fn(move || {
        let (&kind, tail) = rest.split_first()?;
        if kind == 0 {
            return None;
        }
        let (text, tail) = cstr(tail)?;
        rest = tail;
        Some((kind, text))
    })
}

/// One field of an ErrorResponse or NoticeResponse, for example `C` for the SQLSTATE.
pub fn field(body: &[u8], kind: u8) -> Option<&[u8]> {
    fields(body).find(|(found, _)| *found == kind).map(|(_, text)| text)
}

/// Name and value of a ParameterStatus.
pub fn parameter_status(body: &[u8]) -> Option<(&[u8], &[u8])> {
    let (name, rest) = cstr(body)?;
    let (value, rest) = cstr(rest)?;
    rest.is_empty().then_some((name, value))
}

/// What a server asks for in an Authentication message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Authentication<'a> {
    /// Done.
    Ok,
    /// The password in the clear.
    Cleartext,
    /// MD5 with this salt.
    Md5([u8; 4]),
    /// SASL with one of these mechanisms.
    Sasl(Vec<&'a [u8]>),
    /// The server's next SASL message.
    SaslContinue(&'a [u8]),
    /// The server's last SASL message.
    SaslFinal(&'a [u8]),
    /// Any other kind.
    Other(u32),
}

/// An Authentication message.
pub fn authentication(body: &[u8]) -> Option<Authentication<'_>> {
    let (kind, rest) = word(body)?;
    Some(match kind {
        0 => Authentication::Ok,
        3 => Authentication::Cleartext,
        5 => Authentication::Md5(*rest.first_chunk::<4>()?),
        10 => {
            let names = rest.split(|byte| *byte == 0).filter(|name| !name.is_empty());
            Authentication::Sasl(names.collect())
        }
        11 => Authentication::SaslContinue(rest),
        12 => Authentication::SaslFinal(rest),
        other => Authentication::Other(other),
    })
}

/// Values of a DataRow; `None` is NULL. Ends early on a malformed row.
pub fn data_row(body: &[u8]) -> impl Iterator<Item = Option<&[u8]>> {
    let count = body.first_chunk::<2>().map_or(0, |head| u16::from_be_bytes(*head));
    let mut rest = body.get(2..).unwrap_or_default();
    (0..count).map_while(move |_| {
        let (len, tail) = word(rest)?;
        if len == u32::MAX {
            rest = tail;
            return Some(None);
        }
        let value = tail.get(..len as usize)?;
        rest = &tail[len as usize..];
        Some(Some(value))
    })
}

/// Names of the columns of a RowDescription. Ends early on a malformed message.
pub fn row_description(body: &[u8]) -> impl Iterator<Item = &[u8]> {
    let count = body.first_chunk::<2>().map_or(0, |head| u16::from_be_bytes(*head));
    let mut rest = body.get(2..).unwrap_or_default();
    (0..count).map_while(move |_| {
        let (name, tail) = cstr(rest)?;
        rest = tail.get(18..)?;
        Some(name)
    })
}

/// Body of a Parse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parse<'a> {
    /// Statement name, empty for the unnamed one.
    pub name: &'a [u8],
    /// Query text.
    pub sql: &'a [u8],
    /// Count and object ids of the parameter types, as sent.
    pub types: &'a [u8],
}

/// A Parse message.
pub fn parse(body: &[u8]) -> Option<Parse<'_>> {
    let (name, rest) = cstr(body)?;
    let (sql, types) = cstr(rest)?;
    let count = u16::from_be_bytes(*types.first_chunk::<2>()?) as usize;
    (types.len() == 2 + 4 * count).then_some(Parse { name, sql, types })
}

/// The first two strings of a Bind: portal and statement, and what follows them.
pub fn bind(body: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let (portal, rest) = cstr(body)?;
    let (statement, rest) = cstr(rest)?;
    Some((portal, statement, rest))
}

/// Kind (`S` or `P`) and name in a Describe or Close.
pub fn describe(body: &[u8]) -> Option<(u8, &[u8])> {
    let (&kind, rest) = body.split_first()?;
    let (name, rest) = cstr(rest)?;
    (rest.is_empty() && matches!(kind, b'S' | b'P')).then_some((kind, name))
}

/// Mechanism and data of a SASLInitialResponse; data is `None` when absent.
pub fn sasl_initial(body: &[u8]) -> Option<(&[u8], Option<&[u8]>)> {
    let (mechanism, rest) = cstr(body)?;
    let (len, data) = word(rest)?;
    if len == u32::MAX {
        return data.is_empty().then_some((mechanism, None));
    }
    (data.len() == len as usize).then_some((mechanism, Some(data)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build;

    #[test]
    fn builders_and_readers_agree() {
        let mut out = Vec::new();
        build::data_row(&mut out, [Some(&b"ab"[..]), None].into_iter());
        let row: Vec<_> = data_row(&out[5..]).collect();
        assert_eq!(row, [Some(&b"ab"[..]), None]);

        out.clear();
        let column = build::Column { name: "x", oid: 25, len: -1, format: 0 };
        build::row_description(&mut out, [column].into_iter());
        assert_eq!(row_description(&out[5..]).collect::<Vec<_>>(), [b"x"]);

        out.clear();
        build::parse(&mut out, b"n", b"select 1", &[0, 0]);
        let read = parse(&out[5..]).expect("a whole Parse");
        assert_eq!((read.name, read.sql), (&b"n"[..], &b"select 1"[..]));

        out.clear();
        build::sasl_initial(&mut out, "SCRAM-SHA-256", b"n,,");
        assert_eq!(sasl_initial(&out[5..]), Some((&b"SCRAM-SHA-256"[..], Some(&b"n,,"[..]))));
    }

    #[test]
    fn truncated_bodies_are_refused_and_never_panic() {
        let mut out = Vec::new();
        build::parse(&mut out, b"n", b"select $1", &[0, 1, 0, 0, 0, 23]);
        for end in 5..out.len() {
            assert_eq!(parse(&out[5..end]), None);
            data_row(&out[5..end]).for_each(drop);
            row_description(&out[5..end]).for_each(drop);
            fields(&out[5..end]).for_each(drop);
        }
    }
}
