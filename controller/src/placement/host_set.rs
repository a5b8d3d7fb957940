//! A set of hosts as bits, by their position in the batch.

/// A set of hosts.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct HostSet {
    words: Vec<u64>,
}

impl HostSet {
    /// The positions below `hosts` that are members.
    pub(super) fn of(hosts: usize, member: impl Fn(usize) -> bool) -> Self {
        let mut words = vec![0; hosts.div_ceil(64)];
        for host in (0..hosts).filter(|host| member(*host)) {
            words[host / 64] |= 1 << (host % 64);
        }
        Self { words }
    }

    /// Becomes equal to another set, in the memory that this one has.
    pub(super) fn copy_from(&mut self, other: &Self) {
        self.words.clone_from(&other.words);
    }

    /// Whether this position is a member.
    pub(super) fn contains(&self, host: usize) -> bool {
        self.words.get(host / 64).is_some_and(|word| word & (1 << (host % 64)) != 0)
    }

    /// Keeps what is also in the other set; returns how many hosts were removed.
    pub(super) fn intersect(&mut self, other: &Self) -> u32 {
        let mut removed = 0;
        for (word, other) in self.words.iter_mut().zip(&other.words) {
            removed += (*word & !other).count_ones();
            *word &= other;
        }
        removed
    }

    /// Keeps the hosts for which `keep` holds; returns how many were removed.
    pub(super) fn retain(&mut self, keep: impl Fn(usize) -> bool) -> u32 {
        let mut removed = 0;
        for (index, word) in self.words.iter_mut().enumerate() {
            for bit in bits(*word) {
                if !keep(index * 64 + bit) {
                    *word &= !(1 << bit);
                    removed += 1;
                }
            }
        }
        removed
    }

    /// How many members.
    pub(super) fn len(&self) -> u32 {
        self.words.iter().map(|word| word.count_ones()).sum()
    }

    /// Whether a host is in both.
    pub(super) fn meets(&self, other: &Self) -> bool {
        self.words.iter().zip(&other.words).any(|(word, other)| word & other != 0)
    }

    /// The hosts, ascending.
    pub(super) fn iter(&self) -> impl Iterator<Item = usize> {
        self.words.iter().enumerate().flat_map(|(index, word)| bits(*word).map(move |bit| index * 64 + bit))
    }
}

/// Positions of the bits that are set, ascending.
fn bits(mut word: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        (word != 0).then(|| {
            let bit = word.trailing_zeros() as usize;
            word &= word - 1;
            bit
        })
    })
}
