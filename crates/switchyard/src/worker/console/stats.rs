//! SHOW STATS and its relatives.

use switchyard_core::console::Show;
use switchyard_core::console::tables::{Row, TOTALS_NAMES};

use crate::statistics::Values;
use crate::worker::Worker;
use crate::worker::console::tables::text;

impl Worker {
    pub(super) fn stats_rows(&self, show: Show) -> Vec<Row> {
        let row = |(name, totals): (String, Values)| {
            let averages = self.shared.averages(Some(&name), &totals);
            let mut row = vec![text(&name)];
            if show != Show::StatsAverages {
                row.extend(totals.iter().map(text));
            }
            if show != Show::StatsTotals {
                row.extend(averages.iter().map(text));
            }
            row
        };
        self.shared.totals().into_iter().map(row).collect()
    }

    pub(super) fn totals_rows(&self) -> Vec<Row> {
        let totals = self.shared.all_totals();
        let averages = self.shared.averages(None, &totals);
        let prefixed = |prefix: &'static str, values: Values| {
            let named = TOTALS_NAMES.iter().zip(values);
            named.map(move |(name, value)| vec![text(format!("{prefix}_{name}")), text(value)])
        };
        prefixed("total", totals).chain(prefixed("avg", averages)).collect()
    }
}
