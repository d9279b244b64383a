//! Several servers on one database: who leads, and what each commit touched.

use sea_orm_migration::prelude::*;
use sea_orm_migration::schema::{big_integer, integer, text};

use crate::entities::{feed, head, lease};

pub(super) struct Step;

impl MigrationName for Step {
    fn name(&self) -> &str {
        "m0003_replicas"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for Step {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        use head::Column as H;
        // SQLite adds one column at a time.
        for column in [H::Epoch, H::Commits] {
            let add = Table::alter()
                .table(head::Entity)
                .add_column(big_integer(column).default(0))
                .take();
            manager.alter_table(add).await?;
        }

        use lease::Column as L;
        manager
            .create_table(
                Table::create()
                    .table(lease::Entity)
                    .col(integer(L::Id).primary_key())
                    .col(big_integer(L::Epoch))
                    .col(text(L::Holder))
                    .col(text(L::Address))
                    .col(text(L::Certificate))
                    .col(big_integer(L::ExpiresAt))
                    .col(big_integer(L::Applied))
                    .take(),
            )
            .await?;
        manager
            .exec_stmt(
                Query::insert()
                    .into_table(lease::Entity)
                    .columns([
                        L::Id,
                        L::Epoch,
                        L::Holder,
                        L::Address,
                        L::Certificate,
                        L::ExpiresAt,
                        L::Applied,
                    ])
                    .values_panic([
                        1.into(),
                        0i64.into(),
                        "".into(),
                        "".into(),
                        "".into(),
                        0i64.into(),
                        0i64.into(),
                    ])
                    .take(),
            )
            .await?;

        use feed::Column as F;
        manager
            .create_table(
                Table::create()
                    .table(feed::Entity)
                    .col(big_integer(F::Seq).primary_key())
                    .col(text(F::Name))
                    .col(text(F::Touched))
                    .take(),
            )
            .await
    }
}
