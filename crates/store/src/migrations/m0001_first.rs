//! The first schema.

use sea_orm_migration::prelude::*;
use sea_orm_migration::schema::{big_integer, big_integer_null, integer, integer_null};
use sea_orm_migration::schema::{text, text_null};

use crate::entities::{api_keys, events, head, idempotency, jobs, ports, stacks};

pub(super) struct Step;

impl MigrationName for Step {
    fn name(&self) -> &str {
        "m0001_first"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for Step {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        stacks_and_ports(manager).await?;
        log(manager).await?;
        records(manager).await
    }
}

async fn stacks_and_ports(manager: &SchemaManager<'_>) -> Result<(), DbErr> {
    use stacks::Column as C;
    manager
        .create_table(
            Table::create()
                .table(stacks::Entity)
                .col(text(C::Id).primary_key())
                .col(text(C::Dialect))
                .col(text(C::Tenant))
                .col(text(C::Slot))
                .col(text(C::Desired))
                .col(big_integer(C::Generation))
                .col(text(C::Phase))
                .col(text_null(C::Node))
                .col(text_null(C::NodePublicIp))
                .col(text_null(C::Reason))
                .col(text_null(C::Message))
                .col(big_integer(C::Restarts))
                .col(integer_null(C::ExitCode))
                .col(big_integer_null(C::ReadyAt))
                .col(big_integer_null(C::EndedAt))
                .col(big_integer(C::CreatedAt))
                .col(big_integer(C::UpdatedAt))
                .col(big_integer(C::ExpiresAt))
                .col(text(C::RuntimeClass))
                .col(text(C::Labels))
                .col(text(C::Ports))
                .col(text(C::Requested))
                .col(text(C::Spec))
                .col(text(C::PodSpec))
                .take(),
        )
        .await?;
    // Live is what `Stack::is_active` says: wanted, and not ended. One that has ended stays to be
    // looked at and is not in the way of its owner's next.
    manager
        .create_index(
            Index::create()
                .name("stacks_live_owner")
                .table(stacks::Entity)
                .col(C::Dialect)
                .col(C::Tenant)
                .col(C::Slot)
                .unique()
                .and_where(Expr::col(C::Desired).eq(Expr::cust("'running'")))
                .and_where(Expr::cust("phase IN ('creating', 'running')"))
                .take(),
        )
        .await?;

    use ports::Column as P;
    manager
        .create_table(
            Table::create()
                .table(ports::Entity)
                .col(text(P::Protocol))
                .col(integer(P::NodePort))
                .col(text(P::StackId))
                .primary_key(Index::create().col(P::Protocol).col(P::NodePort))
                .foreign_key(
                    ForeignKey::create()
                        .from(ports::Entity, P::StackId)
                        .to(stacks::Entity, C::Id)
                        .on_delete(ForeignKeyAction::Cascade),
                )
                .take(),
        )
        .await?;
    manager
        .create_index(
            Index::create().name("ports_of_stack").table(ports::Entity).col(P::StackId).take(),
        )
        .await
}

async fn log(manager: &SchemaManager<'_>) -> Result<(), DbErr> {
    use events::Column as E;
    manager
        .create_table(
            Table::create()
                .table(events::Entity)
                .col(big_integer(E::Seq).primary_key())
                .col(big_integer(E::At))
                .col(text(E::StackId))
                .col(text(E::Kind))
                .col(text(E::Phase))
                .col(text_null(E::Reason))
                .col(text_null(E::Message))
                .take(),
        )
        .await?;
    manager
        .create_index(
            Index::create()
                .name("events_of_stack")
                .table(events::Entity)
                .col(E::StackId)
                .col(E::Seq)
                .take(),
        )
        .await?;

    use head::Column as H;
    manager
        .create_table(
            Table::create()
                .table(head::Entity)
                .col(integer(H::Id).primary_key())
                .col(big_integer(H::LastEvent))
                .col(text(H::LastCommit))
                .take(),
        )
        .await?;
    manager
        .exec_stmt(
            Query::insert()
                .into_table(head::Entity)
                .columns([H::Id, H::LastEvent, H::LastCommit])
                .values_panic([1.into(), 0i64.into(), "".into()])
                .take(),
        )
        .await
}

async fn records(manager: &SchemaManager<'_>) -> Result<(), DbErr> {
    use idempotency::Column as I;
    manager
        .create_table(
            Table::create()
                .table(idempotency::Entity)
                .col(text(I::Scope))
                .col(text(I::Key))
                .col(text(I::BodyHash))
                .col(text(I::StackId))
                .col(big_integer(I::CreatedAt))
                .primary_key(Index::create().col(I::Scope).col(I::Key))
                .take(),
        )
        .await?;

    use jobs::Column as J;
    manager
        .create_table(
            Table::create()
                .table(jobs::Entity)
                .col(text(J::Id).primary_key())
                .col(text(J::Status))
                .col(text(J::StackIds))
                .col(big_integer(J::Done))
                .col(big_integer(J::Deleted))
                .col(big_integer(J::NotFound))
                .col(big_integer(J::Failed))
                .col(text(J::Errors))
                .col(big_integer(J::CreatedAt))
                .col(big_integer(J::UpdatedAt))
                .take(),
        )
        .await?;

    use api_keys::Column as K;
    manager
        .create_table(
            Table::create()
                .table(api_keys::Entity)
                .col(text(K::Hash).primary_key())
                .col(text(K::Name))
                .col(text(K::Permissions))
                .col(text(K::Dialects))
                .col(big_integer(K::CreatedAt))
                .col(big_integer_null(K::RevokedAt))
                .take(),
        )
        .await?;
    manager
        .create_index(
            Index::create()
                .name("api_keys_name")
                .table(api_keys::Entity)
                .col(K::Name)
                .unique()
                .and_where(Expr::col(K::RevokedAt).is_null())
                .take(),
        )
        .await
}
