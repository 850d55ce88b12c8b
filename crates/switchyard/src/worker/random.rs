//! Random bytes for logins, taken from the system in blocks: one call serves many clients.

/// Bytes not used yet.
#[derive(Debug)]
pub(super) struct Random {
    bytes: [u8; BLOCK],
    used: usize,
}

const BLOCK: usize = 256;

impl Default for Random {
    fn default() -> Self {
        Random { bytes: [0; BLOCK], used: BLOCK }
    }
}

impl Random {
    /// Fresh bytes, at most a block of them; `None` without randomness. Nobody gets them again.
    pub(super) fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        if self.used + N > BLOCK {
            getrandom::fill(&mut self.bytes).ok()?;
            self.used = 0;
        }
        let taken = self.bytes.get_mut(self.used..self.used + N)?;
        self.used += N;
        let fresh = taken.first_chunk::<N>().copied();
        taken.fill(0);
        fresh
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_byte_is_given_twice() {
        let mut random = Random::default();
        let taken: std::collections::HashSet<[u8; 12]> =
            (0..1000).filter_map(|_| random.take()).collect();
        assert_eq!(taken.len(), 1000);
        assert_eq!(random.take::<{ BLOCK + 1 }>(), None);
    }
}
