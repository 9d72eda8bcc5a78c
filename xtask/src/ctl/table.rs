//! Tables of text.

/// On which side of its column a cell stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Left,
    Right,
}

/// A table under construction: each column as wide as its widest cell, two spaces between.
pub(super) struct Table {
    columns: Vec<(&'static str, Side)>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(super) fn new(columns: &[(&'static str, Side)]) -> Table {
        Table {
            columns: columns.to_vec(),
            rows: Vec::new(),
        }
    }

    /// Adds a row; it has as many cells as there are columns.
    pub(super) fn row(&mut self, cells: Vec<String>) {
        debug_assert_eq!(cells.len(), self.columns.len());
        self.rows.push(cells);
    }

    /// The lines: titles, then rows. No line ends in spaces.
    pub(super) fn lines(&self) -> Vec<String> {
        let titles: Vec<String> = self
            .columns
            .iter()
            .map(|(title, _)| (*title).into())
            .collect();
        let widths: Vec<usize> = (0..self.columns.len())
            .map(|column| {
                let cells = std::iter::once(&titles).chain(&self.rows);
                let widths = cells.filter_map(|row| row.get(column));
                widths.map(|cell| cell.chars().count()).max().unwrap_or(0)
            })
            .collect();
        std::iter::once(&titles)
            .chain(&self.rows)
            .map(|row| {
                let cells = row.iter().zip(&widths).zip(&self.columns);
                let cells: Vec<String> = cells
                    .map(|((cell, &width), (_, side))| match side {
                        Side::Left => format!("{cell:<width$}"),
                        Side::Right => format!("{cell:>width$}"),
                    })
                    .collect();
                cells.join("  ").trim_end().to_owned()
            })
            .collect()
    }

    /// The lines as one text.
    pub(super) fn text(&self) -> String {
        self.lines().into_iter().map(|line| line + "\n").collect()
    }
}
