//! The tables, as sea-orm sees them. [`crate::rows`] turns their rows into records and back;
//! [`crate::migrations`] makes them.
#![expect(unreachable_pub, reason = "the derived entities are `pub` whatever surrounds them")]

/// Stacks.
pub mod stacks {
    use sea_orm::entity::prelude::*;

    /// `spec`, `labels`, `ports` and `requested` are JSON; `desired` and `phase` are words; times
    /// are nanoseconds since 1970. `ports` are those that the stack was given; whether it still
    /// holds them is in the other table.
    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "stacks")]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub id: String,
        pub dialect: String,
        pub tenant: String,
        pub slot: String,
        pub desired: String,
        pub generation: i64,
        pub phase: String,
        pub node: Option<String>,
        pub node_public_ip: Option<String>,
        pub reason: Option<String>,
        pub message: Option<String>,
        pub restarts: i64,
        pub exit_code: Option<i32>,
        pub ready_at: Option<i64>,
        pub ended_at: Option<i64>,
        pub created_at: i64,
        pub updated_at: i64,
        pub expires_at: i64,
        pub runtime_class: String,
        pub labels: String,
        pub ports: String,
        pub requested: String,
        pub spec: String,
        pub pod_spec: String,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

/// The node ports that are held now.
pub mod ports {
    use sea_orm::entity::prelude::*;

    /// The row is there while the port is held, so that its key is what keeps ports unique.
    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "ports")]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub protocol: String,
        #[sea_orm(primary_key, auto_increment = false)]
        pub node_port: i32,
        pub stack_id: String,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

/// What has happened.
pub mod events {
    use sea_orm::entity::prelude::*;

    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "events")]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub seq: i64,
        pub at: i64,
        pub stack_id: String,
        pub kind: String,
        pub phase: String,
        pub reason: Option<String>,
        pub message: Option<String>,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

/// One row, which every commit writes.
pub mod head {
    use sea_orm::entity::prelude::*;

    /// Two commits cannot both hold this row, so numbers of events are in the order of commits;
    /// and a commit whose answer was lost is recognised by its name.
    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "head")]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub id: i32,
        pub last_event: i64,
        pub last_commit: String,
        /// Of the replica that may write; 0 where there never were several.
        pub epoch: i64,
        /// How many commits there were.
        pub commits: i64,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

/// One row: which replica leads.
pub mod lease {
    use sea_orm::entity::prelude::*;

    /// `expires_at` is in microseconds of PostgreSQL's own clock, 0 where the lease was given back;
    /// `applied` is the commit up to which the leader's memory is in step with what others wrote.
    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "lease")]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub id: i32,
        pub epoch: i64,
        pub holder: String,
        pub address: String,
        pub certificate: String,
        pub expires_at: i64,
        pub applied: i64,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

/// What each commit touched, for replicas that follow.
pub mod feed {
    use sea_orm::entity::prelude::*;

    /// `seq` is the commit's number and `name` its name, as in `head`; `touched` is JSON.
    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "feed")]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub seq: i64,
        pub name: String,
        pub touched: String,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

/// What idempotency keys stand for.
pub mod idempotency {
    use sea_orm::entity::prelude::*;

    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "idempotency")]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub scope: String,
        #[sea_orm(primary_key, auto_increment = false)]
        pub key: String,
        pub body_hash: String,
        pub stack_id: String,
        pub created_at: i64,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

/// Batch deletes.
pub mod jobs {
    use sea_orm::entity::prelude::*;

    /// `stack_ids` and `errors` are JSON.
    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "jobs")]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub id: String,
        pub status: String,
        pub stack_ids: String,
        pub done: i64,
        pub deleted: i64,
        pub not_found: i64,
        pub failed: i64,
        pub errors: String,
        pub created_at: i64,
        pub updated_at: i64,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

/// Challenges.
pub mod challenges {
    use sea_orm::entity::prelude::*;

    /// `definition` and `spec` are JSON.
    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "challenges")]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub number: i64,
        pub id: String,
        pub definition: String,
        pub spec: String,
        pub created_at: i64,
        pub updated_at: i64,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

/// The greatest number that any challenge has had: one row, from the first challenge on.
pub mod challenge_numbers {
    use sea_orm::entity::prelude::*;

    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "challenge_numbers")]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub id: i32,
        pub last: i64,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

/// The numbers of challenges that are gone: none of them is given out again.
pub mod removed_challenges {
    use sea_orm::entity::prelude::*;

    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "removed_challenges")]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub number: i64,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

/// Who has solved a challenge, and for whom it is locked.
pub mod challenge_marks {
    use sea_orm::entity::prelude::*;

    /// `mark` is `solved` or `locked`; `kind` is `user` or `team`.
    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "challenge_marks")]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub challenge: i64,
        #[sea_orm(primary_key, auto_increment = false)]
        pub mark: String,
        #[sea_orm(primary_key, auto_increment = false)]
        pub kind: String,
        #[sea_orm(primary_key, auto_increment = false)]
        pub subject: String,
        pub at: i64,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

/// Which team each user plays for.
pub mod members {
    use sea_orm::entity::prelude::*;

    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "members")]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub player: String,
        pub team: String,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

/// API keys.
pub mod api_keys {
    use sea_orm::entity::prelude::*;

    /// `hash` is hexadecimal; `permissions` and `dialects` are JSON.
    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "api_keys")]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub hash: String,
        pub name: String,
        pub permissions: String,
        pub dialects: String,
        pub created_at: i64,
        pub revoked_at: Option<i64>,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}
