//! Sizes of batches that are counted together.

/// Two cells a doubling: sizes 1, 2, 3, 4, 5–6, 7–8, 9–12, 13–16 and so on.
pub(super) const CELLS: usize = 40;

/// What is counted of them.
#[derive(Clone, Copy, Default)]
pub(super) struct Cell {
    pub count: u64,
    pub rows: u64,
    pub nanoseconds: u64,
}

/// The cell that batches of a size are counted in.
pub(super) fn cell_of(rows: usize) -> usize {
    if rows <= 2 {
        return rows.saturating_sub(1);
    }
    // For 2^k < rows <= 2^(k+1): the lower or the upper half of the interval.
    let doubling = (rows - 1).ilog2() as usize;
    let is_upper = rows > (1 << doubling) + (1 << (doubling - 1));
    (2 * doubling + usize::from(is_upper)).min(CELLS - 1)
}

/// The largest batch that is counted in a cell.
pub(super) fn limit_of(cell: usize) -> u64 {
    match cell {
        0 | 1 => cell as u64 + 1,
        // It takes whatever is larger, too.
        _ if cell == CELLS - 1 => u64::MAX,
        _ if cell.is_multiple_of(2) => 3 << (cell / 2 - 1),
        _ => 2 << (cell / 2),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batch_sizes_share_a_cell_with_their_neighbours_only() {
        let sizes: Vec<usize> = (1..=33).map(cell_of).collect();
        assert_eq!(sizes[..8], [0, 1, 2, 3, 4, 4, 5, 5]);
        assert_eq!(cell_of(12), cell_of(9));
        assert_ne!(cell_of(13), cell_of(12));
        assert_eq!((cell_of(16), cell_of(17)), (7, 8));
        assert!(sizes.is_sorted() && sizes.windows(2).all(|pair| pair[1] - pair[0] <= 1));
        assert_eq!(cell_of(0), 0);
        assert_eq!(cell_of(usize::MAX), CELLS - 1);
    }

    #[test]
    fn each_cell_has_the_largest_size_that_is_counted_in_it_for_its_limit() {
        for cell in 0..CELLS - 1 {
            let limit = usize::try_from(limit_of(cell)).unwrap();
            assert_eq!((cell_of(limit), cell_of(limit + 1)), (cell, cell + 1), "{cell}");
        }
        assert_eq!(limit_of(CELLS - 1), u64::MAX);
    }
}
