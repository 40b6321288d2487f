//! Rows as a role sees them, and what it can do to those of others.

use std::collections::BTreeSet;

use serde_json::Value;
use sqlx::{AssertSqlSafe, PgConnection, PgPool};

use super::{catalogue, tenants::Tenant};
use crate::stack::Stack;

/// The privilege is missing, or row security refuses the row.
const DENIED: &str = "42501";

/// A table or view that the tenants' role of its schema may read, with the columns it may read.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) name: String,
    schema: String,
    readable: Vec<String>,
    writable: Vec<String>,
    /// A column that anybody with the right to could change.
    changeable: String,
    is_view: bool,
}

/// A row: what tenants may read of it, all of it, and where it is.
#[derive(Debug, sqlx::FromRow)]
pub(super) struct Row {
    pub(super) text: String,
    whole: Value,
    place: String,
}

/// The database of a stack, as its superuser.
pub(super) struct Look<'a> {
    pool: &'a PgPool,
}

fn is_denied<T>(done: &sqlx::Result<T>) -> bool {
    let error = done
        .as_ref()
        .err()
        .and_then(|error| error.as_database_error());
    error
        .and_then(|error| error.code())
        .is_some_and(|code| code == DENIED)
}

/// Schema, name, is a view, columns that can be read, that can be written, one that can be changed.
type TableRow = (String, String, bool, Vec<String>, Vec<String>, String);

impl<'a> Look<'a> {
    pub(super) fn at(stack: &'a Stack) -> Self {
        Self { pool: stack.pool() }
    }

    /// Everything that the tenants' roles may read.
    pub(super) async fn tables(&self) -> Vec<Table> {
        let found: Vec<TableRow> = sqlx::query_as(
            "select n.nspname::text, c.relname::text, c.relkind = 'v',
                    array_agg(a.attname::text order by a.attnum)
                        filter (where has_column_privilege(t.oid, c.oid, a.attnum, 'select')),
                    array_agg(a.attname::text order by a.attnum)
                        filter (where a.attgenerated = ''),
                    min(a.attname::text) filter (where a.attgenerated = '' and a.attidentity = '')
               from pg_class c
               join pg_namespace n on n.oid = c.relnamespace
               join pg_roles t on t.rolname = 'tollgate_' || n.nspname || '_tenant'
               join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
              where c.relkind in ('r', 'p', 'v', 'm', 'f')
                and has_any_column_privilege(t.oid, c.oid, 'select')
              group by 1, 2, 3
              order by 1, 2",
        )
        .fetch_all(self.pool)
        .await
        .unwrap();
        let schemas = catalogue::schemas();
        let tables =
            found
                .into_iter()
                .map(|(schema, name, is_view, readable, writable, changeable)| {
                    assert!(schemas.contains(&schema), "{schema}");
                    Table {
                        name: format!("{schema}.{name}"),
                        schema,
                        readable,
                        writable,
                        changeable,
                        is_view,
                    }
                });
        tables.collect()
    }

    /// Does something in the tenants' role of a schema, and undoes it.
    pub(super) async fn as_tenant<T>(
        &self,
        schema: &str,
        scope: &str,
        work: impl AsyncFnOnce(&mut PgConnection) -> sqlx::Result<T>,
    ) -> sqlx::Result<T> {
        self.in_role(schema, Some(scope), work).await
    }

    async fn in_role<T>(
        &self,
        schema: &str,
        scope: Option<&str>,
        work: impl AsyncFnOnce(&mut PgConnection) -> sqlx::Result<T>,
    ) -> sqlx::Result<T> {
        let mut tx = self.pool.begin().await?;
        let role = format!("set local role tollgate_{schema}_tenant");
        sqlx::raw_sql(AssertSqlSafe(role)).execute(&mut *tx).await?;
        if let Some(scope) = scope {
            sqlx::query("select set_config('tollgate.scope', $1, true)")
                .bind(scope)
                .execute(&mut *tx)
                .await?;
        }
        let done = work(&mut tx).await;
        tx.rollback().await?;
        done
    }

    /// What a statement without a condition reads.
    pub(super) async fn rows(
        &self,
        table: &Table,
        scope: Option<&str>,
    ) -> sqlx::Result<BTreeSet<String>> {
        let sql = format!("select {} from {} t", text(table), table.name);
        let found: Vec<String> = self
            .in_role(&table.schema, scope, async |connection| {
                sqlx::query_scalar(AssertSqlSafe(sql))
                    .fetch_all(connection)
                    .await
            })
            .await?;
        Ok(found.into_iter().collect())
    }

    /// What a tenant sees, by whichever of his scopes the service knows.
    pub(super) async fn of(&self, table: &Table, tenant: &Tenant) -> BTreeSet<String> {
        let mut seen = BTreeSet::new();
        for scope in tenant.scopes() {
            seen.extend(self.rows(table, Some(&scope)).await.unwrap());
        }
        seen
    }

    /// All there is.
    pub(super) async fn everything(&self, table: &Table) -> Vec<Row> {
        let place = if table.is_view { "''" } else { "t.ctid::text" };
        let sql = format!(
            "select {} as text, to_jsonb(t) as whole, {place} as place from {} t",
            text(table),
            table.name
        );
        // The owner of the view sees nothing by himself; it is read as the service reads it.
        let mut tx = self.pool.begin().await.unwrap();
        let role = format!("set local role tollgate_{}", table.schema);
        sqlx::raw_sql(AssertSqlSafe(role))
            .execute(&mut *tx)
            .await
            .unwrap();
        sqlx::query_as(AssertSqlSafe(sql))
            .fetch_all(&mut *tx)
            .await
            .unwrap()
    }

    /// A statement that names another's row by its place changes nothing.
    pub(super) async fn cannot_change(&self, table: &Table, tenant: &Tenant, row: &Row) {
        if table.is_view {
            return;
        }
        let column = &table.changeable;
        let update = format!(
            "update {} set {column} = {column} where ctid = $1::tid",
            table.name
        );
        let delete = format!("delete from {} where ctid = $1::tid", table.name);
        for sql in [update, delete] {
            for scope in tenant.scopes() {
                let done = self.in_role(&table.schema, Some(&scope), async |connection| {
                    sqlx::query(AssertSqlSafe(sql.clone()))
                        .bind(&row.place)
                        .execute(connection)
                        .await
                });
                let done = done.await;
                let is_harmless = matches!(&done, Ok(done) if done.rows_affected() == 0);
                assert!(
                    is_harmless || is_denied(&done),
                    "{sql} for {scope}: {done:?}"
                );
            }
        }
    }

    /// A copy of another's row is refused before any other rule is looked at.
    pub(super) async fn cannot_insert(&self, table: &Table, tenant: &Tenant, row: &Row) {
        let columns = table.writable.join(", ");
        let sql = format!(
            "insert into {name} ({columns}) overriding system value
             select {columns} from jsonb_populate_record(null::{name}, $1)",
            name = table.name
        );
        for scope in tenant.scopes() {
            let done = self.in_role(&table.schema, Some(&scope), async |connection| {
                sqlx::query(AssertSqlSafe(sql.clone()))
                    .bind(&row.whole)
                    .execute(connection)
                    .await
            });
            let done = done.await;
            assert!(is_denied(&done), "{} for {scope}: {done:?}", table.name);
        }
    }
}

/// The columns tenants may read, as one text.
fn text(table: &Table) -> String {
    let columns: Vec<String> = table.readable.iter().map(|it| format!("t.{it}")).collect();
    format!("jsonb_build_array({})::text", columns.join(", "))
}
