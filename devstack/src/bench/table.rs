//! Prints rows of figures as a table: for people, and as Markdown. The first column is text, the others are numbers.

/// Returns a table for a terminal.
pub fn text(head: &[&str], rows: &[Vec<String>]) -> String {
    let head = head.iter().map(|&cell| cell.to_owned()).collect();
    let rows: Vec<&Vec<String>> = std::iter::once(&head).chain(rows).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let line = |row: &&Vec<String>| {
        let cell = |(column, cell): (usize, &String)| match column {
            0 => format!("{cell:<width$}", width = widths[column]),
            _ => format!("{cell:>width$}", width = widths[column]),
        };
        row.iter().enumerate().map(cell).collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// Returns the same table in Markdown.
pub fn markdown(head: &[&str], rows: &[Vec<String>]) -> String {
    let row = |row: &Vec<String>| format!("| {} |", row.join(" | "));
    let head = format!("| {} |\n|---|{}", head.join(" | "), "--:|".repeat(head.len() - 1));
    std::iter::once(head).chain(rows.iter().map(row)).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows = [vec!["aä".to_owned(), "1".to_owned()], vec!["b".to_owned(), "1,000".to_owned()]];
        assert_eq!(text(&["", "n"], &rows), "        n\naä      1\nb   1,000");
        assert_eq!(markdown(&["", "n"], &rows), "|  | n |\n|---|--:|\n| aä | 1 |\n| b | 1,000 |");
    }
}
