//! Challenges and their players: rows, statements and records.

use std::sync::Arc;

use sea_orm::sea_query::{Expr, OnConflict};
use sea_orm::{
    ColumnTrait, ConnectionTrait, DbErr, EntityTrait, IntoActiveModel, QueryFilter, QueryOrder,
};
use stackd_core::Timestamp;
use stackd_core::challenge::{Challenge, ChallengeNumber, Subject};

use crate::apply::{Refused, unique};
use crate::entities::{
    challenge_marks, challenge_numbers, challenges, members, removed_challenges,
};
use crate::rows::{self, Reader};
use crate::{Catalogue, Change, Mark, MarkRecord, StoreError};

/// The only row of `challenge_numbers`.
const NUMBERS: i32 = 1;

/// All rows, as they are.
pub(crate) struct Rows {
    challenges: Vec<challenges::Model>,
    last: Option<challenge_numbers::Model>,
    removed: Vec<removed_challenges::Model>,
    marks: Vec<challenge_marks::Model>,
    members: Vec<members::Model>,
}

pub(crate) async fn load<C: ConnectionTrait>(db: &C) -> Result<Rows, DbErr> {
    let by_number = challenges::Entity::find().order_by_asc(challenges::Column::Number);
    let marks = challenge_marks::Entity::find().order_by_asc(challenge_marks::Column::At);
    Ok(Rows {
        challenges: by_number.all(db).await?,
        last: challenge_numbers::Entity::find_by_id(NUMBERS).one(db).await?,
        removed: removed_challenges::Entity::find().all(db).await?,
        marks: marks.all(db).await?,
        members: members::Entity::find().all(db).await?,
    })
}

impl Rows {
    pub(crate) fn read(self) -> Result<Catalogue, StoreError> {
        let last = self.last.map_or(0, |row| row.last);
        let reader = Reader { what: "the numbers of challenges" };
        Ok(Catalogue {
            challenges: self.challenges.into_iter().map(challenge).collect::<Result<_, _>>()?,
            last_number: reader.number("last", last)?,
            removed: self
                .removed
                .into_iter()
                .map(|row| number(&reader, row.number))
                .collect::<Result<_, _>>()?,
            marks: self.marks.into_iter().map(mark).collect::<Result<_, _>>()?,
            members: self.members.into_iter().map(|row| (row.player, row.team)).collect(),
        })
    }
}

fn number(reader: &Reader<'_>, value: i64) -> Result<ChallengeNumber, StoreError> {
    let number = u64::try_from(value).ok().and_then(ChallengeNumber::new);
    number.ok_or_else(|| reader.fault("number", value))
}

fn challenge(row: challenges::Model) -> Result<Challenge, StoreError> {
    let what = format!("challenge {}", row.id);
    let reader = Reader { what: &what };
    Ok(Challenge {
        number: number(&reader, row.number)?,
        definition: reader.json("definition", &row.definition)?,
        spec: Arc::new(reader.json("spec", &row.spec)?),
        created_at: reader.time("created_at", row.created_at)?,
        updated_at: reader.time("updated_at", row.updated_at)?,
    })
}

fn mark(row: challenge_marks::Model) -> Result<MarkRecord, StoreError> {
    let what = format!("a mark of challenge {}", row.challenge);
    let reader = Reader { what: &what };
    Ok(MarkRecord {
        mark: reader.word("mark", &row.mark, Mark::parse(&row.mark))?,
        challenge: number(&reader, row.challenge)?,
        subject: reader.word("kind", &row.kind, Subject::of(&row.kind, row.subject))?,
        at: reader.time("at", row.at)?,
    })
}

fn challenge_row(challenge: &Challenge) -> challenges::Model {
    challenges::Model {
        number: rows::int(challenge.number.get()),
        id: challenge.definition.id.to_string(),
        definition: rows::json(&challenge.definition),
        spec: rows::json(&challenge.spec),
        created_at: rows::nanos(challenge.created_at),
        updated_at: rows::nanos(challenge.updated_at),
    }
}

/// Applies a change that is about challenges.
pub(crate) async fn change<C: ConnectionTrait>(db: &C, change: &Change) -> Result<(), Refused> {
    match change {
        Change::InsertChallenge(challenge) => insert(db, challenge).await,
        Change::UpdateChallenge(challenge) => {
            use challenges::Column as C;
            let row = challenge_row(challenge);
            challenges::Entity::update_many()
                .col_expr(C::Definition, Expr::value(row.definition))
                .col_expr(C::Spec, Expr::value(row.spec))
                .col_expr(C::UpdatedAt, Expr::value(row.updated_at))
                .filter(C::Number.eq(row.number))
                .exec(db)
                .await?;
            Ok(())
        }
        Change::RemoveChallenge(number) => {
            // Its marks go with it, by their foreign key.
            let number = rows::int(number.get());
            challenges::Entity::delete_by_id(number).exec(db).await?;
            let removed = removed_challenges::Model { number };
            removed_challenges::Entity::insert(removed.into_active_model())
                .on_conflict(
                    OnConflict::column(removed_challenges::Column::Number).do_nothing().to_owned(),
                )
                .exec_without_returning(db)
                .await?;
            Ok(())
        }
        Change::PutMark { mark, challenge, subject, at } => {
            put_mark(db, *mark, *challenge, subject, *at).await
        }
        Change::RemoveMark { mark, challenge, subject } => {
            use challenge_marks::Column as M;
            challenge_marks::Entity::delete_many()
                .filter(M::Challenge.eq(rows::int(challenge.get())))
                .filter(M::Mark.eq(mark.as_str()))
                .filter(M::Kind.eq(subject.kind()))
                .filter(M::Subject.eq(rows::text(subject.name())))
                .exec(db)
                .await?;
            Ok(())
        }
        Change::PutMember { user, team } => {
            let row = members::Model { player: rows::text(user), team: rows::text(team) };
            members::Entity::insert(row.into_active_model())
                .on_conflict(
                    OnConflict::column(members::Column::Player)
                        .update_column(members::Column::Team)
                        .to_owned(),
                )
                .exec_without_returning(db)
                .await?;
            Ok(())
        }
        // Everything else is not about challenges.
        _ => Ok(()),
    }
}

async fn insert<C: ConnectionTrait>(db: &C, challenge: &Challenge) -> Result<(), Refused> {
    let row = challenge_row(challenge);
    let number = row.number;
    challenges::Entity::insert(row.into_active_model())
        .exec_without_returning(db)
        .await
        .map_err(|e| unique(e, |_| StoreError::Duplicate("a challenge of this id or number")))?;
    // It was given anew to one that was removed by mistake.
    removed_challenges::Entity::delete_by_id(number).exec(db).await?;
    use challenge_numbers::Column as N;
    let first = challenge_numbers::Model { id: NUMBERS, last: number };
    challenge_numbers::Entity::insert(first.into_active_model())
        .on_conflict(OnConflict::column(N::Id).do_nothing().to_owned())
        .exec_without_returning(db)
        .await?;
    challenge_numbers::Entity::update_many()
        .col_expr(N::Last, Expr::value(number))
        .filter(N::Id.eq(NUMBERS))
        .filter(N::Last.lt(number))
        .exec(db)
        .await?;
    Ok(())
}

async fn put_mark<C: ConnectionTrait>(
    db: &C,
    mark: Mark,
    challenge: ChallengeNumber,
    subject: &Subject,
    at: Timestamp,
) -> Result<(), Refused> {
    use challenge_marks::Column as M;
    let number = rows::int(challenge.get());
    // The row that it refers to may have gone meanwhile, which is no fault.
    if challenges::Entity::find_by_id(number).one(db).await?.is_none() {
        return Ok(());
    }
    let row = challenge_marks::Model {
        challenge: number,
        mark: mark.as_str().to_owned(),
        kind: subject.kind().to_owned(),
        subject: rows::text(subject.name()),
        at: rows::nanos(at),
    };
    challenge_marks::Entity::insert(row.into_active_model())
        .on_conflict(
            OnConflict::columns([M::Challenge, M::Mark, M::Kind, M::Subject])
                .do_nothing()
                .to_owned(),
        )
        .exec_without_returning(db)
        .await?;
    Ok(())
}
