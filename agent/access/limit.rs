//! How often callers may ask: a bucket of calls for each, which fills up over time.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::config::access::Rate;

/// The most callers that are counted apart. Beyond it the one goes that was quiet for longest.
pub const CALLERS_MAX: usize = 4096;
/// A call, in the unit that buckets are counted in.
const CALL: u64 = 1_000_000;

/// What is left, and when that was so.
#[derive(Debug, Clone, Copy)]
struct Bucket {
    left: u64,
    at: Instant,
}

impl Bucket {
    /// What is left now.
    fn left(self, rate: Rate, now: Instant) -> u64 {
        let since = u64::try_from(now.saturating_duration_since(self.at).as_micros()).unwrap_or(u64::MAX);
        let came = since.saturating_mul(u64::from(rate.per_second));
        self.left.saturating_add(came).min(u64::from(rate.burst).saturating_mul(CALL))
    }

    /// How long until there is a call left.
    fn after(left: u64, rate: Rate) -> Duration {
        Duration::from_micros(CALL.saturating_sub(left).div_ceil(u64::from(rate.per_second.max(1))))
    }
}

/// All buckets.
#[derive(Debug, Default)]
pub struct Limits {
    calls: HashMap<String, Bucket>,
    failures: HashMap<String, Bucket>,
    told: HashMap<String, Bucket>,
}

impl Limits {
    /// Takes one call of a caller.
    ///
    /// # Errors
    /// How long to wait, where there is none left.
    pub fn take(&mut self, key: String, rate: Rate, now: Instant) -> Result<(), Duration> {
        take(&mut self.calls, key, rate, now)
    }

    /// Whether credentials from an address are looked at: too many that failed are not followed by more.
    ///
    /// # Errors
    /// How long to wait.
    pub fn may_try(&self, key: &str, rate: Rate, now: Instant) -> Result<(), Duration> {
        let left = self.failures.get(key).map_or(CALL, |bucket| bucket.left(rate, now));
        if left >= CALL { Ok(()) } else { Err(Bucket::after(left, rate)) }
    }

    /// Credentials from an address failed.
    pub fn failed(&mut self, key: String, rate: Rate, now: Instant) {
        let _ = take(&mut self.failures, key, rate, now);
    }

    /// Whether there is a line left about something.
    pub fn tell(&mut self, key: String, rate: Rate, now: Instant) -> bool {
        take(&mut self.told, key, rate, now).is_ok()
    }

    /// How many callers are counted.
    #[must_use]
    pub fn callers(&self) -> usize {
        self.calls.len()
    }
}

fn take(buckets: &mut HashMap<String, Bucket>, key: String, rate: Rate, now: Instant) -> Result<(), Duration> {
    if buckets.len() >= CALLERS_MAX && !buckets.contains_key(&key) {
        make_room(buckets, rate, now);
    }
    let full = u64::from(rate.burst).saturating_mul(CALL);
    let bucket = buckets.entry(key).or_insert(Bucket { left: full, at: now });
    let left = bucket.left(rate, now);
    let taken = left.checked_sub(CALL);
    *bucket = Bucket { left: taken.unwrap_or(left), at: now };
    taken.map(|_| ()).ok_or_else(|| Bucket::after(left, rate))
}

/// Full buckets say nothing that a new one would not; without any the one goes that was quiet for longest.
fn make_room(buckets: &mut HashMap<String, Bucket>, rate: Rate, now: Instant) {
    let full = u64::from(rate.burst).saturating_mul(CALL);
    buckets.retain(|_, bucket| bucket.left(rate, now) < full);
    if buckets.len() >= CALLERS_MAX {
        let quietest = buckets.iter().min_by_key(|(_, bucket)| bucket.at).map(|(key, _)| key.clone());
        quietest.and_then(|key| buckets.remove(&key));
    }
}

/// What an address is counted under: of IPv6 its network, for one host has all addresses of that.
#[must_use]
pub fn key_of(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            format!("{a:x}:{b:x}:{c:x}:{d:x}::/64")
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const RATE: Rate = Rate { per_second: 10, burst: 2 };

    #[test]
    fn a_bucket_empties_at_once_and_fills_over_time() {
        let (mut limits, start) = (Limits::default(), Instant::now());
        let mut take = |after: u64| limits.take("a".to_owned(), RATE, start + Duration::from_millis(after));
        assert_eq!((take(0), take(0)), (Ok(()), Ok(())));
        assert_eq!(take(0), Err(Duration::from_millis(100)));
        assert_eq!(take(60), Err(Duration::from_millis(40)), "what was refused costs nothing");
        assert_eq!((take(100), take(100).is_err()), (Ok(()), true));
        assert_eq!(
            (take(10_000), take(10_000), take(10_000).is_err()),
            (Ok(()), Ok(()), true),
            "no more than the burst"
        );
    }

    #[test]
    fn callers_are_bounded_and_the_busy_ones_stay() {
        let (mut limits, start) = (Limits::default(), Instant::now());
        for i in 0..3 * CALLERS_MAX {
            limits.take(format!("caller {i}"), RATE, start).unwrap();
            let _ = limits.take("busy".to_owned(), RATE, start + Duration::from_millis(1));
        }
        assert!(limits.callers() <= CALLERS_MAX);
        assert!(limits.take("busy".to_owned(), RATE, start + Duration::from_millis(1)).is_err());
    }

    #[test]
    fn credentials_that_fail_are_counted_by_network() {
        let (mut limits, now) = (Limits::default(), Instant::now());
        let near = |last: u16| key_of(IpAddr::from([0x2001, 0xdb8, 0, 1, 0, 0, 0, last]));
        for i in 0..2 {
            assert_eq!(limits.may_try(&near(i), RATE, now), Ok(()));
            limits.failed(near(i), RATE, now);
        }
        assert_eq!(limits.may_try(&near(99), RATE, now), Err(Duration::from_millis(100)));
        assert_eq!(limits.may_try(&key_of(IpAddr::from([127, 0, 0, 1])), RATE, now), Ok(()));
        assert_eq!(limits.may_try(&near(99), RATE, now + Duration::from_millis(100)), Ok(()));
    }
}
