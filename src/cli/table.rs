//! Tables in text, as wide as the terminal.
//!
//! In scope: rows under headings, in aligned columns or, where these do not fit, as one record a
//! row. Nothing is cut. Out of scope: labels and values (`output`), and the list of bulletins
//! (`render`).

use owo_colors::Style;

use super::output::Output;
use super::wrap::{self, columns};

/// Spaces between two columns.
const SPACING: usize = 2;
/// Narrowest last column in which text is wrapped; a table that leaves less becomes records.
const LAST_COLUMN_MIN: usize = 20;

/// Text of a table cell, and its style. Widths count the text only.
#[derive(Clone, Debug, Default)]
pub(super) struct Cell {
    text: String,
    style: Style,
}

impl Cell {
    /// Creates a cell with a style. The text must be one clean line (`messages::clean`).
    #[must_use]
    pub(super) fn styled(text: impl Into<String>, style: Style) -> Self {
        Self { text: text.into(), style }
    }

    fn painted(&self, output: &Output) -> String {
        output.paint(&self.text, self.style)
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::styled(text, Style::new())
    }
}

/// Rows under headings.
#[derive(Clone, Debug)]
pub(super) struct Table {
    /// The headings, then the rows.
    rows: Vec<Vec<Cell>>,
}

impl Table {
    /// Creates a table with headings.
    #[must_use]
    pub(super) fn new(headings: impl IntoIterator<Item = String>) -> Self {
        let bold = Style::new().bold();
        Self { rows: vec![headings.into_iter().map(|text| Cell::styled(text, bold)).collect()] }
    }

    /// Adds a row.
    pub(super) fn row(&mut self, cells: impl IntoIterator<Item = Cell>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// Returns the lines of the table in the width of `output`. Text in the last column is wrapped
    /// if there is room for it. A table that is too wide even then has a record for each row: the
    /// first cell, and below it the others with their headings.
    #[must_use]
    pub(super) fn lines(&self, output: &Output) -> Vec<String> {
        let count = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let widest = |n: usize, width: fn(&str) -> usize| {
            self.rows.iter().filter_map(|row| row.get(n)).map(|cell| width(&cell.text)).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..count).map(|n| widest(n, columns)).collect();
        let Some((last, others)) = widths.split_last() else { return Vec::new() };
        let before_last: usize = others.iter().map(|width| width + SPACING).sum();
        let room = output.width().saturating_sub(before_last);
        let wrapped = room >= LAST_COLUMN_MIN && widest(others.len(), wrap::widest_part) <= room;
        if *last <= room || wrapped { self.aligned(others, output) } else { self.records(output) }
    }

    /// Returns the rows in columns; `widths` has those of all columns but the last.
    fn aligned(&self, widths: &[usize], output: &Output) -> Vec<String> {
        let line = |row: &Vec<Cell>| {
            let mut before_last = String::new();
            let mut cells = row.iter();
            for (width, cell) in widths.iter().zip(cells.by_ref()) {
                before_last.push_str(&cell.painted(output));
                before_last.extend(std::iter::repeat_n(' ', width - columns(&cell.text) + SPACING));
            }
            let last = cells.next().map(|cell| cell.painted(output)).unwrap_or_default();
            wrap::hanging(&before_last, &last, output.width())
        };
        self.rows.iter().flat_map(line).collect()
    }

    fn records(&self, output: &Output) -> Vec<String> {
        let Some((headings, rows)) = self.rows.split_first() else { return Vec::new() };
        let record = |row: &Vec<Cell>| {
            let title = row.first().map(|cell| cell.painted(output)).unwrap_or_default();
            let others = headings.iter().zip(row).skip(1).filter(|(_, cell)| !cell.text.is_empty());
            let others = others.map(|(heading, cell)| {
                format!("{} {}", output.paint(&heading.text, Style::new().dimmed()), cell.painted(output))
            });
            let mut lines = wrap::hanging("", &title, output.width());
            lines.extend(wrap::items("  ", others, output.width()));
            lines
        };
        rows.iter().flat_map(record).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::messages::{FSI, PDI};

    fn table(rows: &[[&str; 3]]) -> Table {
        let mut table = Table::new(["Member", "Link", "Groups"].map(str::to_owned));
        rows.iter().for_each(|row| table.row(row.map(Cell::from)));
        table
    }

    #[test]
    fn table_aligns_columns() {
        let table = table(&[["ly (Libya)", "up", "customs"], ["ne", "down", ""]]);
        let expected = ["Member      Link  Groups", "ly (Libya)  up    customs", "ne          down"];
        assert_eq!(table.lines(&Output::plain()), expected);
        assert_eq!(table.lines(&Output::plain().with_width(40)), expected);
    }

    #[test]
    fn last_column_is_wrapped_and_never_cut() {
        let groups = "customs, information, justice, security";
        let table = table(&[["ly (Libya)", "up", groups]]);
        let narrow = table.lines(&Output::plain().with_width(50));
        assert_eq!(narrow[1], "ly (Libya)  up    customs, information, justice,");
        assert_eq!(narrow[2], "                  security");
    }

    #[test]
    fn table_without_room_becomes_records() {
        let digest = "a1".repeat(32);
        let table = table(&[["ly (Libya)", "up", &digest], ["ne", "", "short"]]);
        let narrow = table.lines(&Output::plain().with_width(80));
        let with_digest = format!("  Groups {digest}");
        assert_eq!(narrow, ["ly (Libya)", "  Link up", &with_digest, "ne", "  Groups short"]);
        assert!(table.lines(&Output::plain().with_width(90))[1].ends_with(&digest));
        for width in 40..90 {
            let lines = table.lines(&Output::plain().with_width(width));
            assert!(lines.iter().any(|line| line.ends_with(&digest)), "{width}: a digest is whole: {lines:?}");
        }
    }

    #[test]
    fn isolates_and_diacritics_do_not_move_columns() {
        let isolated = format!("{FSI}ne{PDI}");
        let table = table(&[[&isolated, "up", "x"], ["سَلَام", "up", "y"]]);
        let lines = table.lines(&Output::plain());
        let start = |line: &str, last: char| columns(line.split(last).next().unwrap_or_default());
        assert_eq!(start(&lines[1], 'x'), start(&lines[2], 'y'));
    }
}
