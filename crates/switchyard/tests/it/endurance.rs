//! Many changes of writer in a row: nothing may be left of them but their records.

use std::io;

use switchyard_testkit::endure;

const CHANGES: usize = 8;
const CLIENTS: usize = 8;
/// Memory that records and a busy allocator may take, in KiB.
const GROWTH: u64 = 4096;

#[test]
fn changes_of_writer_in_a_row_leave_nothing_behind() -> io::Result<()> {
    if !super::wanted() {
        return Ok(());
    }
    let endurance = endure(super::program(), CHANGES, CLIENTS)?;
    let (before, after, cost) = (endurance.before, endurance.after, &endurance.cost);
    assert_eq!(after.descriptors, before.descriptors, "{endurance:?}");
    assert_eq!(after.threads, before.threads, "{endurance:?}");
    assert!(after.memory <= before.memory + GROWTH, "{endurance:?}");
    assert_eq!((cost.disconnects, cost.wrong), (0, 0), "{:?}", cost.complaints);
    assert_eq!((cost.lost, cost.doubled, cost.stale), (0, 0, 0), "{:?}", cost.complaints);
    // One for each client whose statement was under way, and none where there was a HOLD.
    assert!(cost.errors <= endurance.unheld * CLIENTS, "{} {:?}", cost.errors, cost.complaints);
    assert!(endurance.records >= CHANGES, "{}", endurance.records);
    Ok(())
}
