//! How soon memory must be looked at again.

use crate::quantity::Span;

/// The fastest that memory is assumed to fill: 6000 MiB/s, the figure that earlyoom uses.
pub const FILL_BYTES_PER_SECOND: u64 = 6000 << 20;
/// The shortest time between two looks. The gate must be shut 250 ms after the floor was crossed.
pub const INTERVAL_MIN: Span = Span(100);
/// The longest time between two looks.
pub const INTERVAL_MAX: Span = Span(1000);

/// The time in which memory could reach the floor, within the bounds above. Unread memory is looked at soon.
#[must_use]
pub fn interval(available_bytes: Option<u64>, floor_bytes: u64) -> Span {
    let above = available_bytes.unwrap_or(0).saturating_sub(floor_bytes);
    let millis = above / (FILL_BYTES_PER_SECOND / 1000);
    Span(i64::try_from(millis).unwrap_or(i64::MAX).clamp(INTERVAL_MIN.0, INTERVAL_MAX.0))
}
