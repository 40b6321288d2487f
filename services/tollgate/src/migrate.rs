//! `tollgate migrate`: brings every schema to the state that this binary was built for.

use anyhow::Context;
use secrecy::ExposeSecret;
use serde_json::json;
use sqlx::Connection;
use sqlx::migrate::{Migrate, MigrateError, Migrator};
use sqlx::postgres::{PgConnectOptions, PgConnection};

use crate::connect::System;
use crate::failure::{Failure, Result};
use crate::output::Output;
use crate::roster::Target;

/// One migration that was applied just now.
pub(crate) struct Applied {
    schema: &'static str,
    version: i64,
    what: String,
}

/// The migrations of a schema, and where it notes what was applied.
fn migrator(schema: &'static str) -> anyhow::Result<Migrator> {
    let mut migrator = match schema {
        "keys" => sqlx::migrate!("../../migrations/keys"),
        "wallet" => sqlx::migrate!("../../migrations/wallet"),
        "usage_ingest" => sqlx::migrate!("../../migrations/usage_ingest"),
        "stats_aggregator" => sqlx::migrate!("../../migrations/stats_aggregator"),
        "anomaly_detector" => sqlx::migrate!("../../migrations/anomaly_detector"),
        "portal" => sqlx::migrate!("../../migrations/portal"),
        other => anyhow::bail!("schema {other} has no migrations"),
    };
    migrator.create_schema(schema);
    migrator.dangerous_set_table_name(format!("{schema}.migrations"));
    // Held by the caller, over all schemas.
    migrator.set_locking(false);
    Ok(migrator)
}

/// Applies what is missing. An advisory lock of the database lets one process do it at a time.
pub(crate) async fn apply(
    connection: &mut PgConnection,
    schemas: &[&'static str],
) -> anyhow::Result<Vec<Applied>> {
    // Released with the connection, should this fail.
    connection.lock().await?;
    let mut applied = Vec::new();
    for schema in schemas {
        let migrator = migrator(schema)?;
        let before = versions(connection, &migrator).await?;
        let done = migrator.run_direct(None, &mut *connection, false).await;
        done.map_err(explain)
            .with_context(|| format!("schema {schema}"))?;
        let new = migrator
            .iter()
            .filter(|migration| !before.contains(&migration.version));
        applied.extend(new.map(|migration| Applied {
            schema,
            version: migration.version,
            what: migration.description.to_string(),
        }));
    }
    connection.unlock().await?;
    Ok(applied)
}

/// Checks that nothing is missing.
pub(crate) async fn check(
    connection: &mut PgConnection,
    schemas: &[&'static str],
) -> anyhow::Result<()> {
    for schema in schemas {
        let migrator = migrator(schema)?;
        let applied = versions(connection, &migrator).await?;
        let missing = migrator.iter().find(|it| !applied.contains(&it.version));
        if let Some(missing) = missing {
            anyhow::bail!(
                "schema {schema} lacks migration {:04} ({}): run `tollgate migrate`, or serve with \
                 --migrate",
                missing.version,
                missing.description,
            );
        }
    }
    Ok(())
}

/// Versions applied so far; none when the schema is not there.
async fn versions(connection: &mut PgConnection, migrator: &Migrator) -> anyhow::Result<Vec<i64>> {
    match connection
        .list_applied_migrations(&migrator.table_name)
        .await
    {
        Ok(applied) => Ok(applied
            .into_iter()
            .map(|migration| migration.version)
            .collect()),
        Err(MigrateError::Execute(error)) if is_undefined(&error) => Ok(Vec::new()),
        Err(error) => Err(explain(error)),
    }
}

/// Undefined table, or schema.
fn is_undefined(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code());
    matches!(code.as_deref(), Some("42P01" | "3F000"))
}

fn explain(error: MigrateError) -> anyhow::Error {
    match error {
        MigrateError::VersionMismatch(version) => anyhow::anyhow!(
            "migration {version:04} has been changed since it was applied here: use an empty \
             database, or the binary that applied it"
        ),
        MigrateError::VersionMissing(version) => anyhow::anyhow!(
            "migration {version:04} was applied here by a newer binary than this one"
        ),
        other => other.into(),
    }
}

/// Connects as everything but the services does: once, without a pool.
pub(crate) async fn connect(url: &str) -> anyhow::Result<PgConnection> {
    // The error of a malformed URL could quote the password: it is not shown.
    let options: PgConnectOptions = url
        .parse()
        .map_err(|_quotes_it| anyhow::anyhow!("DATABASE_URL is not a PostgreSQL URL"))?;
    let options = options.application_name("tollgate migrate");
    PgConnection::connect_with(&options)
        .await
        .context("PostgreSQL does not answer")
}

pub(crate) async fn run(data: Option<&std::path::Path>, output: &Output) -> Result {
    let environment = System::of_environment();
    // Who names a database means it, whatever runs in this folder.
    let system = match data {
        None if environment.names_postgres() => environment,
        _ => System::find(data)?,
    };
    let mut connection = connect(system.postgres_url()?.expose_secret()).await?;
    let applied = apply(&mut connection, &Target::all().schemas()).await?;
    connection.close().await.map_err(Failure::from)?;
    if applied.is_empty() && !output.is_json() {
        output.note("nothing to apply: every schema is up to date");
        return Ok(());
    }
    let rows = applied
        .iter()
        .map(|it| json!({ "schema": it.schema, "version": it.version, "description": it.what }));
    let columns = [
        ("schema", "SCHEMA"),
        ("version", "VERSION"),
        ("description", "WHAT"),
    ];
    output.list("applied", &columns, rows.collect());
    Ok(())
}
