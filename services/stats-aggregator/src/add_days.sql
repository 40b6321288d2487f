insert into stats_aggregator.daily_stats as d (
    org_id, date, environment, total_requests, total_credits, successful_requests,
    services_breakdown, created_at, updated_at)
select org_id, date, environment, requests, credits, successful, services, $8, $8
  from unnest(
           $1::uuid[], $2::date[], $3::text[], $4::bigint[], $5::bigint[], $6::bigint[],
           $7::jsonb[]
       ) change (org_id, date, environment, requests, credits, successful, services)
 order by org_id, date, environment
    on conflict (org_id, date, environment) do update
   set total_requests = d.total_requests + excluded.total_requests,
       total_credits = d.total_credits + excluded.total_credits,
       successful_requests = d.successful_requests + excluded.successful_requests,
       services_breakdown = stats_aggregator.add_counts(
           d.services_breakdown, excluded.services_breakdown),
       updated_at = excluded.updated_at
