#![allow(clippy::unwrap_used)]
use super::*;

const KEY: Key = [7; 32];
const MAX: u64 = 1 << 20;

/// Begins what nobody has begun.
fn begin(spools: &Spools, key: Key, dir: &Path, expected: u64, max: u64) -> Option<(Writer, Follower)> {
    let (writer, follower) = spools.join_or_begin(key, dir, expected, max)?;
    Some((writer.unwrap(), follower))
}

async fn rest(mut follower: Follower) -> Result<Vec<u8>, Broken> {
    let mut all = Vec::new();
    while let Some(part) = follower.next().await? {
        all.extend_from_slice(&part);
    }
    Ok(all)
}

#[tokio::test]
async fn all_read_the_same_and_what_it_took_is_given_back() {
    let dir = tempfile::tempdir().unwrap();
    let spools = Spools::default();
    assert!(spools.join(&KEY).is_none());
    let (mut writer, first) = begin(&spools, KEY, dir.path(), 4, MAX).unwrap();
    let first = tokio::spawn(rest(first));
    writer.put(vec![1; 3].into()).unwrap();
    let late = spools.join(&KEY).unwrap();
    writer.put(vec![2; 1].into()).unwrap();
    writer.end(Ok(()));
    // Whole answers are joined for as long as somebody reads them.
    let last = spools.join(&KEY).unwrap();
    for follower in [late, last] {
        assert_eq!(rest(follower).await.unwrap(), [1, 1, 1, 2]);
    }
    assert_eq!(first.await.unwrap().unwrap(), [1, 1, 1, 2]);
    assert!(spools.join(&KEY).is_none());
    assert_eq!(spools.reserved(), 0);
    assert_eq!(names(dir.path()).unwrap(), [""; 0]);
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_an_error_to_all() {
    let dir = tempfile::tempdir().unwrap();
    let spools = Spools::default();
    let (mut writer, first) = begin(&spools, KEY, dir.path(), 4, MAX).unwrap();
    let second = spools.join(&KEY).unwrap();
    writer.put(vec![1; 3].into()).unwrap();
    drop(writer);
    assert!(spools.join(&KEY).is_none(), "nobody joins what is broken");
    assert!(rest(first).await.is_err() && rest(second).await.is_err());
}

#[tokio::test]
async fn the_writer_learns_that_all_have_left() {
    let dir = tempfile::tempdir().unwrap();
    let spools = Spools::default();
    let (writer, first) = begin(&spools, KEY, dir.path(), 4, MAX).unwrap();
    let second = spools.join(&KEY).unwrap();
    let deserted = writer.deserted();
    drop(first);
    assert!(!deserted.is_cancelled());
    drop(second);
    assert!(deserted.is_cancelled());
    assert!(spools.join(&KEY).is_none(), "its writer is about to end");
    let (other, _) = begin(&spools, KEY, dir.path(), 4, MAX).unwrap();
    drop((writer, other));
    assert_eq!(spools.reserved(), 0);
}

#[tokio::test]
async fn what_does_not_fit_is_not_begun_and_not_outgrown() {
    let dir = tempfile::tempdir().unwrap();
    let spools = Spools::default();
    let begun = begin(&spools, KEY, dir.path(), 3, 4).unwrap();
    assert!(begin(&spools, [8; 32], dir.path(), 2, 4).is_none());
    assert!(begin(&spools, [8; 32], dir.path(), 1, 4).is_some());
    let (mut writer, follower) = begun;
    writer.put(vec![0; 3].into()).unwrap();
    assert!(writer.put(vec![0; 1].into()).is_err());
    drop((writer, follower));
    assert_eq!(spools.reserved(), 0);
    let (mut writer, _follower) = begin(&spools, KEY, dir.path(), 1, GROW_BYTES + 1).unwrap();
    writer.put(vec![0; 100].into()).unwrap();
    assert_eq!(spools.reserved(), GROW_BYTES + 1);
}

#[test]
fn leftovers_go() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("x"), "x").unwrap();
    clean(dir.path());
    clean(&dir.path().join("none"));
    assert_eq!(names(dir.path()).unwrap(), [""; 0]);
}

#[tokio::test]
async fn slow_and_fast_readers_get_every_byte_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let spools = Spools::default();
    let (mut writer, mut slow) = begin(&spools, KEY, dir.path(), MAX, MAX).unwrap();
    let mut fast = spools.join(&KEY).unwrap();
    let (mut expected, mut kept_pace, mut fell_behind) = (Vec::new(), Vec::new(), Vec::new());
    for number in 0..50_u8 {
        let part = vec![number; 1 + usize::from(number) * 37];
        expected.extend_from_slice(&part);
        writer.put(part.into()).unwrap();
        kept_pace.extend_from_slice(&fast.next().await.unwrap().unwrap());
        if number % 20 == 19 {
            fell_behind.extend_from_slice(&slow.next().await.unwrap().unwrap());
        }
    }
    writer.end(Ok(()));
    assert_eq!(kept_pace, expected);
    fell_behind.extend_from_slice(&rest(slow).await.unwrap());
    assert_eq!(fell_behind, expected);
}
