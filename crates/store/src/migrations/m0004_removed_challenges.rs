//! The numbers of challenges that are gone. Which ones went before this step nobody knows any more.

use sea_orm_migration::prelude::*;
use sea_orm_migration::schema::big_integer;

use crate::entities::removed_challenges;

pub(super) struct Step;

impl MigrationName for Step {
    fn name(&self) -> &str {
        "m0004_removed_challenges"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for Step {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        use removed_challenges::Column as R;
        manager
            .create_table(
                Table::create()
                    .table(removed_challenges::Entity)
                    .col(big_integer(R::Number).primary_key())
                    .take(),
            )
            .await
    }
}
