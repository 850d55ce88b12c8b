//! Calls of the system that no safe library offers. The only unsafe code of the project.

#![allow(unsafe_code)]

use std::ffi::CStr;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};

/// A moment in the time zone of the process (`TZ`, or the system's).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalTime {
    /// Year.
    pub year: i32,
    /// Month, from 1.
    pub month: i32,
    /// Day of the month.
    pub day: i32,
    /// Hour.
    pub hour: i32,
    /// Minute.
    pub minute: i32,
    /// Second.
    pub second: i32,
    /// Abbreviation of the zone.
    pub zone: String,
}

impl LocalTime {
    /// The moment so many seconds after the beginning of 1970.
    pub fn of(seconds: i64) -> Option<Self> {
        let mut parts = MaybeUninit::<libc::tm>::zeroed();
        // SAFETY: both pointers are valid for the call, and a `tm` of zeros is a value.
        let parts = unsafe {
            if libc::localtime_r(&seconds, parts.as_mut_ptr()).is_null() {
                return None;
            }
            parts.assume_init()
        };
        let zone = if parts.tm_zone.is_null() {
            String::new()
        } else {
            // SAFETY: the C library keeps the names of zones for ever and ends them with a zero.
            unsafe { CStr::from_ptr(parts.tm_zone) }.to_string_lossy().into_owned()
        };
        Some(LocalTime {
            year: parts.tm_year + 1900,
            month: parts.tm_mon + 1,
            day: parts.tm_mday,
            hour: parts.tm_hour,
            minute: parts.tm_min,
            second: parts.tm_sec,
            zone,
        })
    }
}

/// TCP_DEFER_ACCEPT: a connection is reported when its first bytes are there, or after so many
/// seconds; 0 turns it off.
pub(crate) fn set_defer_accept(socket: BorrowedFd<'_>, seconds: libc::c_int) -> io::Result<()> {
    let size = size_of::<libc::c_int>() as libc::socklen_t;
    let value: *const libc::c_int = &seconds;
    // SAFETY: the descriptor is open while it is borrowed, and `value` points to `size` bytes.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_DEFER_ACCEPT,
            value.cast(),
            size,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// How many connections wait at a listening TCP socket; `None` if the system does not tell.
pub(crate) fn waiting(listener: BorrowedFd<'_>) -> Option<u32> {
    // SAFETY: numbers only, for which zeros are values.
    let mut info: libc::tcp_info = unsafe { MaybeUninit::zeroed().assume_init() };
    let mut size = size_of::<libc::tcp_info>() as libc::socklen_t;
    let value: *mut libc::tcp_info = &mut info;
    // SAFETY: the descriptor is open while it is borrowed, and `value` points to `size` bytes.
    let result = unsafe {
        libc::getsockopt(
            listener.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            value.cast(),
            &mut size,
        )
    };
    // For a listening socket these fields are the length of its queue and the longest allowed.
    (result == 0 && info.tcpi_sacked > 0).then_some(info.tcpi_unacked)
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn listeners_tell_how_many_wait() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
        let address = listener.local_addr().expect("its address");
        assert_eq!(waiting(listener.as_fd()), Some(0));
        let connect = || TcpStream::connect(address).expect("a connection");
        let clients: Vec<TcpStream> = (0..3).map(|_| connect()).collect();
        for left in (0..3).rev() {
            listener.accept().expect("one that waits");
            assert_eq!(waiting(listener.as_fd()), Some(left));
        }
        drop(clients);
        let other = TcpStream::connect(address).expect("a connection");
        assert_eq!(waiting(other.as_fd()), None);
    }

    #[test]
    fn moments_are_split() {
        // Wherever the tests run: zones differ from each other by whole minutes.
        let time = LocalTime::of(951_782_399).expect("a time");
        assert_eq!((time.year, time.second), (2000, 59));
        assert!((1..=12).contains(&time.month) && !time.zone.is_empty(), "{time:?}");
        assert_eq!(LocalTime::of(i64::MAX), None);
    }
}
