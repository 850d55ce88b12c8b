//! Output of one turn: ranges of the input that go on unchanged, and bytes put between them.
//!
//! As long as one contiguous range is all there is, nothing is copied; the first interruption
//! turns the batch into an owned buffer. Either way it is one send.

use std::ops::Range;

/// What goes to one peer at the end of a turn.
#[derive(Debug, Default)]
pub struct Batch {
    owned: Vec<u8>,
    range: Range<usize>,
}

impl Batch {
    /// Lets `range` of `input` pass. All calls of a turn name the same input.
    #[inline]
    pub fn forward(&mut self, input: &[u8], range: Range<usize>) {
        if range.is_empty() {
            return;
        }
        if self.range.is_empty() {
            self.range = range;
        } else if self.range.end == range.start {
            self.range.end = range.end;
        } else {
            self.settle(input);
            self.range = range;
        }
    }

    /// Puts bytes behind what has passed so far.
    pub fn inject(&mut self, input: &[u8], fill: impl FnOnce(&mut Vec<u8>)) {
        self.settle(input);
        fill(&mut self.owned);
    }

    /// The bytes to send, in order.
    pub fn bytes<'a>(&'a mut self, input: &'a [u8]) -> &'a [u8] {
        if self.owned.is_empty() {
            return &input[self.range.clone()];
        }
        self.settle(input);
        &self.owned
    }

    /// Whether there is nothing to send.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.owned.is_empty() && self.range.is_empty()
    }

    /// Bytes that were put between the input, and of the input what was copied for their sake.
    #[inline]
    pub fn injected(&self) -> usize {
        self.owned.len()
    }

    /// Forgets everything, for the next turn. A buffer grown by a burst is given back.
    pub fn clear(&mut self) {
        self.range = 0..0;
        if self.owned.capacity() > CAPACITY_KEPT {
            self.owned = Vec::new();
        }
        self.owned.clear();
    }

    fn settle(&mut self, input: &[u8]) {
        self.owned.extend_from_slice(&input[self.range.clone()]);
        self.range = 0..0;
    }
}

/// Largest buffer kept between turns, in bytes.
const CAPACITY_KEPT: usize = 512 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contiguous_ranges_are_not_copied_and_order_is_kept() {
        let input = b"abcdef";
        let mut batch = Batch::default();
        batch.forward(input, 0..2);
        batch.forward(input, 2..3);
        assert_eq!(batch.bytes(input), b"abc");
        assert!(batch.owned.is_empty());
        batch.inject(input, |out| out.extend_from_slice(b"--"));
        batch.forward(input, 4..6);
        assert_eq!(batch.bytes(input), b"abc--ef");
        batch.clear();
        assert!(batch.is_empty());
    }
}
