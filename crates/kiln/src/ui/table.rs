//! Rows for people: columns that line up.

use super::Paint;

/// Columns as wide as their widest entry; the last one is left as it is.
pub fn table<const N: usize>(heads: [&str; N], rows: &[[String; N]], paint: Paint) -> Vec<String> {
    let width = |column: usize| {
        rows.iter()
            .map(|row| row[column].chars().count())
            .chain([heads[column].len()])
            .max()
            .unwrap_or_default()
    };
    let line = |cells: [&str; N]| {
        let padded: Vec<String> =
            cells.iter().enumerate().map(|(at, cell)| format!("{cell:<width$}", width = width(at))).collect();
        padded.join("  ").trim_end().to_owned()
    };
    std::iter::once(paint.heading(line(heads)))
        .chain(rows.iter().map(|row| line(std::array::from_fn(|at| row[at].as_str()))))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    #[test]
    fn columns_line_up() {
        let rows = [["debian-12".to_owned(), "-".to_owned()], ["a".to_owned(), "long".to_owned()]];
        expect![[r#"
            NAME       IN
            debian-12  -
            a          long"#]]
        .assert_eq(&table(["NAME", "IN"], &rows, Paint { on: false }).join("\n"));
    }
}
