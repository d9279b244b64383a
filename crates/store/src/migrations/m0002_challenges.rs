//! Challenges, who has solved them, for whom they are locked, and who plays for which team.

use sea_orm_migration::prelude::*;
use sea_orm_migration::schema::{big_integer, integer, text};

use crate::entities::{challenge_marks, challenge_numbers, challenges, members};

pub(super) struct Step;

impl MigrationName for Step {
    fn name(&self) -> &str {
        "m0002_challenges"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for Step {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        use challenges::Column as C;
        manager
            .create_table(
                Table::create()
                    .table(challenges::Entity)
                    .col(big_integer(C::Number).primary_key())
                    .col(text(C::Id))
                    .col(text(C::Definition))
                    .col(text(C::Spec))
                    .col(big_integer(C::CreatedAt))
                    .col(big_integer(C::UpdatedAt))
                    .take(),
            )
            .await?;
        manager
            .create_index(
                Index::create()
                    .name("challenges_id")
                    .table(challenges::Entity)
                    .col(C::Id)
                    .unique()
                    .take(),
            )
            .await?;

        use challenge_numbers::Column as N;
        manager
            .create_table(
                Table::create()
                    .table(challenge_numbers::Entity)
                    .col(integer(N::Id).primary_key())
                    .col(big_integer(N::Last))
                    .take(),
            )
            .await?;

        use challenge_marks::Column as M;
        manager
            .create_table(
                Table::create()
                    .table(challenge_marks::Entity)
                    .col(big_integer(M::Challenge))
                    .col(text(M::Mark))
                    .col(text(M::Kind))
                    .col(text(M::Subject))
                    .col(big_integer(M::At))
                    .primary_key(
                        Index::create().col(M::Challenge).col(M::Mark).col(M::Kind).col(M::Subject),
                    )
                    .foreign_key(
                        ForeignKey::create()
                            .from(challenge_marks::Entity, M::Challenge)
                            .to(challenges::Entity, C::Number)
                            .on_delete(ForeignKeyAction::Cascade),
                    )
                    .take(),
            )
            .await?;

        use members::Column as P;
        manager
            .create_table(
                Table::create()
                    .table(members::Entity)
                    .col(text(P::Player).primary_key())
                    .col(text(P::Team))
                    .take(),
            )
            .await
    }
}
