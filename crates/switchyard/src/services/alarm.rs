//! Waiting on a timer of the system. The runtime's own round up to whole milliseconds, which
//! doubles the interval at which a cluster without a writer is asked, and they wake the thread in
//! between: to move a timer within their wheel, and whenever one is set that comes first.

use std::io;
use std::time::{Duration, Instant};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use tokio::net::unix::pipe::Receiver;

/// A timer of the system. It is read like a pipe, as which the runtime watches it.
pub(super) struct Alarm(Option<Receiver>);

impl Alarm {
    /// One of its own for a task; without one, waits are as fine as the runtime's.
    pub(super) fn new() -> Self {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags).map_err(io::Error::from);
        Alarm(timer.and_then(Receiver::from_owned_fd_unchecked).ok())
    }

    /// Waits until then. May be dropped and begun again.
    pub(super) async fn until(&self, at: Instant) {
        let rest = at.saturating_duration_since(Instant::now());
        let rung = match &self.0 {
            Some(timer) => ring(timer, rest).await.is_ok(),
            None => false,
        };
        if !rung {
            tokio::time::sleep_until(at.into()).await;
        }
    }
}

/// Waits for one expiry of a timer that is set anew.
async fn ring(timer: &Receiver, rest: Duration) -> io::Result<()> {
    // Zero would switch it off.
    let rest = rest.max(Duration::from_nanos(1));
    let once = Itimerspec {
        it_interval: Timespec { tv_sec: 0, tv_nsec: 0 },
        it_value: Timespec {
            tv_sec: i64::try_from(rest.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(rest.subsec_nanos()),
        },
    };
    timerfd_settime(timer, TimerfdTimerFlags::empty(), &once)?;
    loop {
        timer.readable().await?;
        let mut count = [0; 8];
        match timer.try_read(&mut count) {
            // What was left of an earlier expiry.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            read => return read.map(drop),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn an_alarm_rings_in_time_after_one_that_nobody_waited_for() {
        let alarm = Alarm::new();
        assert!(alarm.0.is_some());
        let begun = Instant::now();
        let (soon, later) = (begun + Duration::from_micros(200), begun + Duration::from_millis(5));
        tokio::select! {
            biased;
            () = alarm.until(later) => unreachable!("the runtime was not yet asked"),
            () = std::future::ready(()) => {}
        }
        while Instant::now() < later {
            std::thread::yield_now();
        }
        // The first expiry is there and belongs to nobody.
        let (begun, rest) = (Instant::now(), Duration::from_millis(3));
        alarm.until(begun + rest).await;
        assert!(begun.elapsed() >= rest);
        alarm.until(soon).await;
        assert!(Instant::now() >= soon);
    }
}
