use rusqlite::Connection;

/// Called for every statement that any test runs: no question may read a whole table, or sort.
pub(super) fn check_plan(connection: &Connection, sql: &str) {
    let mut statement = connection.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
    let steps: Vec<String> =
        statement.raw_query().mapped(|row| row.get("detail")).collect::<Result<_, _>>().unwrap();
    for step in &steps {
        let whole = step.starts_with("SCAN") && !step.contains("USING");
        assert!(!whole && !step.contains("TEMP B-TREE"), "{sql}\n{steps:#?}");
    }
}
