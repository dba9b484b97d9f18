//! The queue against plain rules and against a reference disk.

use super::*;

fn data(byte: u8, len: usize) -> Content {
    Content::Data(Bytes::from(vec![byte; len]))
}

fn take(queue: &mut Queue) -> Option<(u64, u64)> {
    queue.take(1 << 20, Prefer::Data).map(|run| (run.offset, run.len))
}

#[test]
fn neighbours_become_one_run_in_both_directions() {
    let mut queue = Queue::default();
    queue.put(4096, 4096, data(1, 4096));
    queue.put(8192, 4096, data(2, 4096));
    queue.put(0, 4096, data(3, 4096));
    queue.put(16384, 4096, data(4, 4096));
    let run = queue.take(1 << 20, Prefer::Data).unwrap();
    assert_eq!((run.offset, run.len), (0, 12288));
    let RunContent::Data(pieces) = run.content else { panic!("zeroes") };
    assert_eq!(pieces.iter().map(|p| p[0]).collect::<Vec<_>>(), [3, 1, 2]);
    assert_eq!(take(&mut queue), Some((16384, 4096)));
    assert_eq!(take(&mut queue), None);
}

#[test]
fn a_run_is_no_longer_than_asked() {
    let mut queue = Queue::default();
    queue.put(0, 10_000, data(1, 10_000));
    let first = queue.take(4096, Prefer::Data).unwrap();
    let second = queue.take(4096, Prefer::Data).unwrap();
    assert_eq!((first.offset, first.len, second.offset, second.len), (0, 4096, 4096, 4096));
    assert_eq!(queue.backlog_bytes(), 10_000);
    queue.complete(&first);
    queue.complete(&second);
    assert_eq!(queue.backlog_bytes(), 10_000 - 8192);
}

#[test]
fn a_rewrite_of_pending_bytes_reaches_the_target_once() {
    let mut queue = Queue::default();
    queue.put(0, 8192, data(1, 8192));
    queue.put(2048, 2048, data(2, 2048));
    assert_eq!((queue.backlog_bytes(), queue.data_bytes()), (8192, 8192));
    let RunContent::Data(pieces) = queue.take(1 << 20, Prefer::Data).unwrap().content else { panic!("zeroes") };
    assert_eq!(pieces.iter().map(|p| (p[0], p.len())).collect::<Vec<_>>(), [(1, 2048), (2, 2048), (1, 4096)]);
}

#[test]
fn a_write_over_one_in_flight_waits_for_it() {
    let mut queue = Queue::default();
    queue.put(0, 4096, data(1, 4096));
    let flying = queue.take(1 << 20, Prefer::Data).unwrap();
    queue.put(1024, 512, data(2, 512));
    queue.put(9000, 1, data(3, 1));
    assert_eq!(take(&mut queue), Some((9000, 1)), "what does not overlap goes on");
    assert_eq!(take(&mut queue), None);
    queue.complete(&flying);
    assert_eq!(take(&mut queue), Some((1024, 512)));
}

#[test]
fn readers_see_pending_over_in_flight() {
    let mut queue = Queue::default();
    queue.put(0, 4, data(1, 4));
    queue.take(1 << 20, Prefer::Data).unwrap();
    queue.put(2, 4, Content::Zero);
    let seen = queue.overlay(1, 4);
    assert_eq!(seen.len(), 2);
    assert_eq!(seen[0], Piece { offset: 1, len: 3, content: data(1, 3) });
    assert_eq!(seen[1], Piece { offset: 2, len: 3, content: Content::Zero });
}

#[test]
fn a_flush_is_not_passed_by_a_rewrite() {
    let mut queue = Queue::default();
    let flush = queue.put(0, 4096, data(1, 4096));
    queue.put(0, 4096, data(2, 4096));
    assert_eq!(queue.oldest_number(), Some(flush), "the newer bytes stand for the older ones");
    let run = queue.take(1 << 20, Prefer::Data).unwrap();
    queue.put(0, 4096, data(3, 4096));
    assert_eq!(queue.oldest_number(), Some(flush));
    queue.complete(&run);
    assert!(queue.oldest_number().unwrap() > flush);
}

#[test]
fn data_goes_before_zeroes_unless_somebody_waits() {
    let put = || {
        let mut queue = Queue::default();
        queue.put(0, 1 << 30, Content::Zero);
        queue.put(1 << 31, 512, data(1, 512));
        queue
    };
    assert_eq!(put().take(4096, Prefer::Data).unwrap().offset, 1 << 31);
    assert_eq!(put().take(4096, Prefer::Oldest).unwrap().content, RunContent::Zero);
    assert_eq!(put().data_bytes(), 512);
}

#[test]
fn dropping_what_is_pending_leaves_what_is_in_flight() {
    let mut queue = Queue::default();
    queue.put(0, 512, data(1, 512));
    let run = queue.take(1 << 20, Prefer::Data).unwrap();
    queue.put(0, 512, data(2, 512));
    queue.put(4096, 512, Content::Zero);
    assert_eq!(queue.drop_pending(), 1024);
    assert_eq!((queue.backlog_bytes(), queue.data_bytes()), (512, 512));
    queue.complete(&run);
    assert_eq!((queue.backlog_bytes(), queue.data_bytes(), queue.oldest_number()), (0, 0, None));
}

/// xorshift: a fixed seed gives the same run every time.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

#[test]
fn random_writes_completed_in_any_order_give_the_reference_disk() {
    const SIZE: u64 = 4096;
    for seed in 1..40 {
        let mut random = Random(seed * 0x9E37_79B9_7F4A_7C15);
        let (mut disk, mut reference) = (vec![0u8; SIZE as usize], vec![0u8; SIZE as usize]);
        let mut queue = Queue::default();
        let mut flying: Vec<Run> = Vec::new();
        for step in 0..400u64 {
            match random.below(4) {
                0 | 1 => {
                    let offset = random.below(SIZE);
                    let len = 1 + random.below((SIZE - offset).min(700));
                    let byte = (step % 255) as u8 + 1;
                    let zero = random.below(4) == 0;
                    let content = if zero { Content::Zero } else { data(byte, len as usize) };
                    queue.put(offset, len, content);
                    reference[offset as usize..][..len as usize].fill(if zero { 0 } else { byte });
                }
                2 => flying.extend(queue.take(1 + random.below(1500), Prefer::Data)),
                _ if !flying.is_empty() => {
                    let run = flying.swap_remove(random.below(flying.len() as u64) as usize);
                    apply(&mut disk, &run);
                    queue.complete(&run);
                }
                _ => {}
            }
            let mut seen = disk.clone();
            for piece in queue.overlay(0, SIZE) {
                let part = &mut seen[piece.offset as usize..][..piece.len as usize];
                match piece.content {
                    Content::Data(bytes) => part.copy_from_slice(&bytes),
                    Content::Zero => part.fill(0),
                }
            }
            assert_eq!(seen, reference, "seed {seed}, step {step}");
        }
        while let Some(run) = flying.pop().or_else(|| queue.take(999, Prefer::Oldest)) {
            apply(&mut disk, &run);
            queue.complete(&run);
        }
        assert_eq!(disk, reference, "seed {seed}");
        assert_eq!((queue.backlog_bytes(), queue.data_bytes(), queue.oldest_number()), (0, 0, None));
    }
}

fn apply(disk: &mut [u8], run: &Run) {
    let part = &mut disk[run.offset as usize..][..run.len as usize];
    match &run.content {
        RunContent::Zero => part.fill(0),
        RunContent::Data(pieces) => part.copy_from_slice(&pieces.concat()),
    }
}
