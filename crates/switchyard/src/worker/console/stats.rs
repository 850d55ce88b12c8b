//! SHOW STATS and its relatives.

use switchyard_core::console::Show;
use switchyard_core::console::tables::{Row, TOTALS_NAMES};

use crate::worker::Worker;
use crate::worker::console::tables::text;

impl Worker {
    pub(super) fn stats_rows(&self, show: Show) -> Vec<Row> {
        let mut sums = [[0u64; 12]; 2];
        let mut rows = Vec::new();
        for (name, totals) in self.shared.totals() {
            let averages = self.shared.averages(&name, &totals);
            for index in 0..totals.len() {
                sums[0][index] += totals[index];
                sums[1][index] += averages[index];
            }
            let mut row = vec![text(&name)];
            if show != Show::StatsAverages {
                row.extend(totals.iter().map(text));
            }
            if show != Show::StatsTotals {
                row.extend(averages.iter().map(text));
            }
            rows.push(row);
        }
        if show != Show::Totals {
            return rows;
        }
        let prefixed = |prefix: &'static str, values: [u64; 12]| {
            TOTALS_NAMES
                .iter()
                .zip(values)
                .map(move |(name, value)| vec![text(format!("{prefix}_{name}")), text(value)])
        };
        prefixed("total", sums[0]).chain(prefixed("avg", sums[1])).collect()
    }
}
