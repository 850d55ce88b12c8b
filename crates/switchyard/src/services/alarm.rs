//! Waiting to a fraction of a millisecond: the runtime's own timers round up to whole ones, which
//! doubles the interval at which a cluster without a writer is asked.

use std::io;
use std::time::{Duration, Instant};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use tokio::net::unix::pipe::Receiver;

/// Longer waits are left to the runtime, whose timers cost no system call.
const FINE: Duration = Duration::from_millis(10);

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
        match &self.0 {
            Some(timer) if rest < FINE => {
                if ring(timer, rest).await.is_err() {
                    tokio::time::sleep_until(at.into()).await;
                }
            }
            _ => tokio::time::sleep_until(at.into()).await,
        }
    }
}

/// Waits for one expiry of a timer that is set anew.
async fn ring(timer: &Receiver, rest: Duration) -> io::Result<()> {
    let mut once = Itimerspec {
        it_interval: Timespec { tv_sec: 0, tv_nsec: 0 },
        it_value: Timespec { tv_sec: 0, tv_nsec: i64::from(rest.subsec_nanos()) },
    };
    // Zero would switch it off.
    once.it_value.tv_nsec = once.it_value.tv_nsec.max(1);
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
        let (soon, later) = (begun + Duration::from_micros(200), begun + FINE / 2);
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
