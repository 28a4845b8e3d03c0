-- name: seen
-- Instances, each with its first dead letter that is not discarded, unless it has ended. A letter without a next attempt
-- parks the instance. $1, $2: sagas, and the time after which their instances are stuck; those of others are never stuck.
select s.stream_id, s.saga, s.key,
       case when l.position is not null and l.next_attempt_at is null then 'parked' else s.status end as status,
       s.state, s.steps, s.waiting_for, s.since, s.reason, s.compensates, s.started_at, s.finished_at, s.position,
       s.version, s.correlation_id,
       coalesce(s.status in ('running', 'undoing', 'parked') and s.started_at < now() - t.stuck_after, false) as stuck,
       l.position as letter, l.error, l.next_attempt_at, t.saga is not null as limited
  from headwater.sagas s
  left join unnest($1::text[], $2::interval[]) as t(saga, stuck_after) on t.saga = s.saga
  left join lateral (
    select d.position, d.error, d.next_attempt_at
      from headwater.dead_letters d
     where s.status in ('running', 'undoing', 'parked')
       and d.projection = 'saga ' || s.saga and d.key = s.key::text and d.error is not null and not d.discarded
     order by d.position
     limit 1
  ) l on true

-- name: list
-- The instances that match, the latest change first. The inner conditions repeat what an
-- index can serve.
select * from ({seen}
 where {scope} and {after}) seen
 where ($3::text is null or saga = $3) and ($4::text is null or status = $4) and ($5::uuid is null or key = $5)
   and ($6::boolean is null or stuck = $6)
   and ($7::timestamptz is null or since < $7) and ($8::timestamptz is null or since >= $8)
 order by since desc, stream_id desc
 limit $9

-- name: by_stream
-- The instance of a stream.
{seen}
 where s.stream_id = $3

-- name: by_key
-- The instances with a key, at most one of each saga.
{seen}
 where s.key = $3
 order by s.saga

-- name: count
-- The numbers of instances that have not ended, by saga. stuck is null for a saga whose limit is not given.
select saga, count(*) filter (where status = 'running') as running, count(*) filter (where status = 'undoing') as undoing,
       count(*) filter (where status = 'parked') as parked,
       case when bool_or(limited) then count(*) filter (where stuck) end as stuck
  from ({seen}
         where s.status in ('running', 'undoing', 'parked')) seen
 group by saga
 order by saga

-- name: row
-- The row on which an operator's decision is based.
select saga, key, status, version, correlation_id from headwater.sagas where stream_id = $1
