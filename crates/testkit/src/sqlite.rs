//! A hand in a SQLite database beside the program's own, as an operator with `sqlite3` has it.

use std::path::Path;

use sea_orm::{ConnectionTrait, Database};

/// Executes these statements.
pub async fn execute(path: &Path, sql: &str) {
    let url = format!("sqlite://{}", path.display());
    let db = Database::connect(url).await.expect("the database opens");
    db.execute_unprepared(sql).await.expect("the statements are executed");
    db.close().await.expect("the database closes");
}
