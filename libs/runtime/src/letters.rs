//! Dead letters: what a consumer has put aside, and what an operator does about it.
//!
//! - A letter goes once everything in it is applied, or by an operator's decision that is noted for
//!   good; both with its effect, in one transaction.
//! - A retry applies what any delivery would: what is applied already changes nothing.
//! - What is discarded is a gap of this consumer alone: only what breaks a rule now, and only when
//!   nothing before it is still to come. The rest of the letter is applied.

mod desk;
mod events;
pub(crate) mod table;

use std::{collections::BTreeMap, sync::Arc};

use proto::{
    convert::{page, status, timestamp},
    letters::v1::{
        self as wire,
        letters_service_server::{LettersService, LettersServiceServer},
    },
};
use sqlx::{Postgres, Transaction};
use tonic::{Request, Response, Status, async_trait, server::NamedService as _};
use types::Code;

use self::table::{Decided, Discard, Letter};
pub(crate) use self::{desk::Desk, events::Events};
use crate::{
    grpc::{Actor, actor, client_address},
    host::Host,
    node::Offers,
    postgres,
};

/// Characters of why something is discarded.
const WHY_CHARS_MAX: usize = 500;
/// Characters of who says so.
const BY_CHARS_MAX: usize = 100;
/// Told to whoever needs what others have locked.
const BUSY: &str = "what it is about is busy, try again";
/// On an event that is published again: whoever applies it takes its letter away.
pub(crate) const RETRIED: &str = "Tollgate-Letter";

type Reply<T> = Result<Response<T>, Status>;

/// Whoever has letters: a consumer of usage, or a service that follows events.
#[async_trait]
pub(crate) trait Keeper: Send + Sync {
    fn host(&self) -> &Host;
    fn schema(&self) -> &'static str;
    async fn look(&self, id: i64) -> Result<wire::GetLetterResponse, Status>;
    async fn retry(&self, id: i64) -> Result<wire::RetryLetterResponse, Status>;
    async fn discard(&self, decision: &Decision) -> Result<wire::DiscardLetterResponse, Status>;
}

/// That of an operator.
pub(crate) struct Decision {
    id: i64,
    why: String,
    by: String,
    address: String,
    is_forged: bool,
}

impl Decision {
    /// A letter of which nothing counts as applied.
    fn of_whole<'a>(&'a self, letter: &'a Letter, payload: &'a [u8], host: &Host) -> Discard<'a> {
        Discard {
            letter,
            payload,
            records: &[],
            batch: &[],
            applied: 0,
            why: &self.why,
            by: &self.by,
            address: &self.address,
            at: host.clock().now(),
        }
    }
}

/// The keepers of a process, by the names of their services.
#[derive(Clone, Default)]
pub(crate) struct Letters(pub(crate) BTreeMap<&'static str, Arc<dyn Keeper>>);

impl Letters {
    /// Offers them over gRPC, to operators.
    pub(crate) fn offer(self, offers: &mut Offers) {
        if !self.0.is_empty() {
            offers.names.push(LettersServiceServer::<Self>::NAME);
            offers.routes.add_service(LettersServiceServer::new(self));
        }
    }

    fn keeper(&self, name: &str) -> Result<&Arc<dyn Keeper>, Status> {
        let missing = || {
            let text = format!("no consumer `{name}` with letters runs here");
            status(Code::NotFound, text)
        };
        self.0.get(name).ok_or_else(missing)
    }
}

/// Takes away the letters of which everything is applied by now, however that came about.
pub(crate) async fn sweep(host: &Host, schema: &'static str) {
    let swept = async {
        let mut connection = host.postgres().acquire().await?;
        table::sweep(&mut connection, schema).await
    };
    match swept.await {
        Ok(0) => {}
        Ok(letters) => {
            tracing::info!(consumer = host.name(), letters, "dead letters were applied");
        }
        Err(error) => tracing::debug!(%error, "dead letters were not looked through"),
    }
}

/// Only operators look into letters, and nobody on behalf of a user.
fn operator_only<T>(request: &Request<T>) -> Result<(), Status> {
    match actor(request) {
        Actor::Operator => Ok(()),
        Actor::User(_) => Err(status(Code::Forbidden, "letters are for operators")),
    }
}

fn text(field: &str, given: &str, chars_max: usize) -> Result<String, Status> {
    let given = given.trim();
    if given.is_empty() || chars_max < given.chars().count() || given.contains('\0') {
        let text = format!("`{field}` has 1 to {chars_max} characters");
        return Err(status(Code::Invalid, text));
    }
    Ok(given.to_owned())
}

#[async_trait]
impl LettersService for Letters {
    async fn list_letters(
        &self,
        request: Request<wire::ListLettersRequest>,
    ) -> Reply<wire::ListLettersResponse> {
        operator_only(&request)?;
        let wire::ListLettersRequest {
            consumer,
            after,
            page_size,
        } = request.into_inner();
        let keeper = self.keeper(&consumer)?;
        let pool = keeper.host().postgres();
        let mut connection = pool.acquire().await.map_err(away)?;
        let found = table::list(&mut connection, keeper.schema(), after, page(page_size));
        let found = found.await.map_err(away)?;
        let letters = found.iter().map(to_wire).collect();
        Ok(Response::new(wire::ListLettersResponse { letters }))
    }

    async fn get_letter(
        &self,
        request: Request<wire::GetLetterRequest>,
    ) -> Reply<wire::GetLetterResponse> {
        operator_only(&request)?;
        let wire::GetLetterRequest { consumer, id } = request.into_inner();
        Ok(Response::new(self.keeper(&consumer)?.look(id).await?))
    }

    async fn retry_letter(
        &self,
        request: Request<wire::RetryLetterRequest>,
    ) -> Reply<wire::RetryLetterResponse> {
        operator_only(&request)?;
        let wire::RetryLetterRequest { consumer, id } = request.into_inner();
        Ok(Response::new(self.keeper(&consumer)?.retry(id).await?))
    }

    async fn discard_letter(
        &self,
        request: Request<wire::DiscardLetterRequest>,
    ) -> Reply<wire::DiscardLetterResponse> {
        operator_only(&request)?;
        let it = request.into_inner();
        let keeper = self.keeper(&it.consumer)?;
        let decision = Decision {
            id: it.id,
            why: text("why", &it.why, WHY_CHARS_MAX)?,
            by: text("by", &it.by, BY_CHARS_MAX)?,
            address: client_address().map_or_else(String::new, |it| it.to_string()),
            is_forged: it.is_forged,
        };
        Ok(Response::new(keeper.discard(&decision).await?))
    }
}

fn to_wire(letter: &Letter) -> wire::Letter {
    let (journal, from, below) = match letter.extent {
        Some((journal, from, below)) => (journal.to_string(), from, below),
        None => (String::new(), 0, 0),
    };
    wire::Letter {
        id: letter.id,
        subject: letter.subject.clone(),
        journal_id: journal,
        from,
        below,
        reason: letter.reason.clone(),
        first_at: Some(timestamp(letter.first_at)),
        last_at: Some(timestamp(letter.last_at)),
        times: letter.times,
        bytes: letter.bytes,
    }
}

fn to_wire_decided(it: &Decided) -> wire::DiscardLetterResponse {
    wire::DiscardLetterResponse {
        discarded: it.discarded,
        applied: it.applied,
        at: Some(timestamp(it.at)),
    }
}

/// The database, or whatever else was needed, did not answer.
#[expect(
    clippy::needless_pass_by_value,
    reason = "it stands where an error is mapped"
)]
fn away(error: sqlx::Error) -> Status {
    if is_busy(&error) {
        return status(Code::Unavailable, BUSY);
    }
    tracing::warn!(%error, "a letter was not looked after");
    status(Code::Unavailable, "PostgreSQL did not do it, try again")
}

/// A lock was waited for too long, or there was a deadlock.
fn is_busy(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code());
    code.is_some_and(|code| ["55P03", "40P01"].contains(&code.as_ref()))
}

/// Begins a transaction on a letter, which is locked until its end.
async fn open(
    keeper: &dyn Keeper,
    id: i64,
) -> Result<(Transaction<'static, Postgres>, Option<(Letter, Vec<u8>)>), Status> {
    let pool = keeper.host().postgres();
    let mut transaction = postgres::begin(&pool).await.map_err(away)?;
    let bounded = table::bound_waits(&mut transaction).await;
    bounded.map_err(away)?;
    let found = table::lock(&mut transaction, keeper.schema(), id);
    let found = found.await.map_err(away)?;
    Ok((transaction, found))
}

fn unknown(id: i64) -> Status {
    status(Code::NotFound, format!("there is no letter {id}"))
}

/// Says that a rule stands in the way; asking again does not help before something has changed.
fn refuse(text: impl Into<String>) -> Status {
    status(Code::Conflict, text)
}

/// Takes a letter away of which nothing counts as applied, and notes who wanted that.
async fn take_away_whole(
    keeper: &dyn Keeper,
    mut transaction: Transaction<'static, Postgres>,
    (letter, payload): (&Letter, &[u8]),
    decision: &Decision,
) -> Result<wire::DiscardLetterResponse, Status> {
    let (host, schema) = (keeper.host(), keeper.schema());
    let discard = decision.of_whole(letter, payload, host);
    let noted = async {
        table::note_discard(&mut transaction, schema, &discard).await?;
        table::delete(&mut transaction, schema, letter.id).await?;
        transaction.commit().await
    };
    noted.await.map_err(away)?;
    tracing::warn!(
        consumer = host.name(),
        letter = letter.id,
        subject = letter.subject,
        why = decision.why,
        by = decision.by,
        "an operator has discarded a letter, and nothing counts as applied by that"
    );
    Ok(wire::DiscardLetterResponse {
        discarded: 0,
        applied: 0,
        at: Some(timestamp(discard.at)),
    })
}

/// What was decided about a letter that is not there any more.
async fn decided(
    keeper: &dyn Keeper,
    mut transaction: Transaction<'static, Postgres>,
    id: i64,
) -> Result<wire::DiscardLetterResponse, Status> {
    let found = table::decided(&mut transaction, keeper.schema(), id);
    let found = found.await.map_err(away)?;
    found
        .as_ref()
        .map(to_wire_decided)
        .ok_or_else(|| unknown(id))
}
