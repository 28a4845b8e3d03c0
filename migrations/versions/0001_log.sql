-- The log and what is kept beside it. Requires PostgreSQL 18 (uuidv7).

create schema headwater;
comment on schema headwater is 'Headwater''s own tables: the log, and what is kept beside it.';

-- ---------------------------------------------------------------------------------------------------------------- log

create table headwater.head (
  singleton boolean primary key default true check (singleton),
  position bigint not null check (position >= 0),
  recorded_at timestamptz not null
);
comment on table headwater.head is
  'One row: where the log ends. append() holds its lock to the commit, so positions become visible in their own order: '
  'whoever has seen N has seen everything up to N.';
comment on column headwater.head.recorded_at is
  'When the last event was recorded; time never goes back from one position to the next, even when a clock does.';
insert into headwater.head (singleton, position, recorded_at) values (true, 0, '-infinity');

create table headwater.events (
  position bigint not null,
  stream_id uuid not null,
  version integer not null check (version > 0),
  ordinal smallint not null check (ordinal > 0),
  schema_version smallint not null check (schema_version > 0),
  event_id uuid not null,
  command_id uuid not null,
  correlation_id uuid not null,
  causation_id uuid,
  recorded_at timestamptz not null,
  category text collate "C" not null,
  type text collate "C" not null,
  actor text,
  tenant text,
  traceparent text,
  data json not null,
  constraint events_pkey primary key (position),
  constraint events_stream_version_key unique (stream_id, version),
  constraint events_command_ordinal_key unique (command_id, ordinal)
);
comment on table headwater.events is
  'Every fact, once, for ever. There is no index on category or type: readers follow by position, and an index that is '
  'rarely read would be paid for by every append.';
comment on column headwater.events.position is 'Contiguous from 1, in commit order.';
comment on column headwater.events.version is 'The event''s place in its stream, from 1: optimistic concurrency.';
comment on column headwater.events.ordinal is
  'The event''s place in its command, from 1: with command_id it is the idempotency key, and finds a command''s last event.';
comment on column headwater.events.data is 'json, not jsonb: kept as it was written, and cheaper both to write and to read.';

-- Only what was caused by another request's command stands in it: a command that nothing caused is its own correlation,
-- and is found by events_command_ordinal_key. So ordinary commands do not pay for it.
create index events_correlation on headwater.events (correlation_id, position) where correlation_id <> command_id;

create function headwater.refuse_change() returns trigger language plpgsql as $$
begin
  raise exception 'headwater.% is append-only: % is refused', tg_table_name, lower(tg_op)
    using errcode = 'insufficient_privilege', hint = 'Append an event that says what has changed.';
end $$;

create trigger append_only before update or delete or truncate on headwater.events
  for each statement execute function headwater.refuse_change();
-- ALWAYS: also where session_replication_role would switch ordinary triggers off.
alter table headwater.events enable always trigger append_only;

create table headwater.commands (
  command_id uuid primary key,
  stream_id uuid not null,
  version integer not null,
  position bigint not null
);
comment on table headwater.commands is
  'Accepted commands that left no event; those that did are found by events_command_ordinal_key.';

create table headwater.claims (
  name text collate "C" not null,
  value text collate "C" not null,
  stream_id uuid not null,
  constraint claims_pkey primary key (name, value)
);
comment on table headwater.claims is
  'Values that belong to one stream at a time, such as an e-mail address. Taken and released in the append of the events '
  'that say so.';
create index claims_stream on headwater.claims (stream_id);

-- Verdicts: a accepted, d done before (with the first result), c conflict (with the actual version), t a claim is
-- taken (with the claim's place), b behind: an earlier command of the same call touched the same stream and lost, or
-- the same claim or command id; nothing is known of it but that it must be decided again.
--
-- What most calls have alike is left out of them, since each element of an array costs both sides: counts is null when
-- each command has one event, kinds when all events are of the first kind, and the metadata that nobody gave.
create function headwater.append(
  command_ids uuid[], stream_ids uuid[], expected integer[], counts integer[],
  kind_categories text[], kind_types text[], kind_versions smallint[], kinds integer[], payloads text[],
  correlation_ids uuid[], causation_ids uuid[], actors text[], tenants text[], traceparents text[],
  claim_commands integer[], claim_takes boolean[], claim_names text[], claim_values text[],
  out verdicts "char"[], out versions integer[], out positions bigint[], out streams uuid[], out blockers integer[]
) language plpgsql volatile
  -- A plan that compiles, or looks for tables elsewhere, would cost more than it does.
  set jit = off
  set plan_cache_mode = force_generic_plan
  set search_path = headwater, pg_temp
as $$
<<here>>
declare
  base bigint;
  moment timestamptz;
  behind boolean[];
  places integer[];
  ordinals integer[];
  any_without_events boolean;
  appended integer;
begin
  -- Everything below sees what every earlier append has left, since each waits here for the one before it.
  select position, greatest(recorded_at, clock_timestamp()) into strict base, moment from head for update;
  any_without_events := exists (select from commands);

  if cardinality(claim_commands) > 0
     or (select count(distinct id) from unnest(command_ids) as id) < cardinality(command_ids) then
    -- The first command of a call to name a claim or a command id goes on; the others are behind it.
    select array_agg(
             c.place > c.first_place
             or exists (
               select from unnest(claim_commands, claim_names, claim_values) as later(command, name, value)
               join unnest(claim_commands, claim_names, claim_values) as earlier(command, name, value)
                 on earlier.name = later.name and earlier.value = later.value
               where later.command = c.place and earlier.command < c.place
             ) order by c.place)
      into behind
      from (select u.place, min(u.place) over (partition by u.command_id) as first_place
              from unnest(command_ids) with ordinality as u(command_id, place)) c;
  end if;

  if cardinality(claim_commands) > 0 then
    select array_agg(b.blocker order by c.place) into blockers
      from generate_series(1, cardinality(command_ids)) as c(place)
      left join lateral (
        select k.place::integer as blocker
          from unnest(claim_commands, claim_takes, claim_names, claim_values) with ordinality
            as k(command, take, name, value, place)
          join claims on claims.name = k.name and claims.value = k.value
         where k.command = c.place and k.take and claims.stream_id <> stream_ids[c.place]
         order by k.place limit 1
      ) b on true;
  end if;

  -- Each command is judged as if those before it in its stream were accepted, and falls with the first that is not.
  -- LEFT JOIN LATERAL ... LIMIT 1 holds the plan to index look-ups, however long the log is.
  select array_agg(v.verdict), array_agg(v.version), array_agg(base + v.reached), array_agg(v.stream_id)
    into verdicts, versions, positions, streams
    from (
      select case when w.done then 'd' when w.behind or not w.clear then 'b' when w.wrong then 'c'
                  when w.taken then 't' else 'a' end::"char" as verdict,
             case when w.done then w.done_version when w.clear and w.ok then w.actual + w.n else w.actual end as version,
             case when w.done then w.done_position - base
                  else coalesce(sum(w.n) filter (where w.clear and w.ok) over (order by w.place), 0) end as reached,
             case when w.done then w.done_stream else w.stream_id end as stream_id
        from (
          select j.*,
                 coalesce(bool_and(j.ok) over (
                   partition by j.stream_id order by j.place rows between unbounded preceding and 1 preceding), true)
                   as clear
            from (
              select c.place, c.stream_id, c.n, s.actual, d.*, b.*,
                     not d.done and not b.behind and not b.wrong and not b.taken as ok
                from (
                  select u.place, u.command_id, u.stream_id, u.expected, coalesce(u.n, 1) as n,
                         (sum(coalesce(u.n, 1)) over (partition by u.stream_id order by u.place rows unbounded preceding)
                          - coalesce(u.n, 1))::integer as before
                    from unnest(command_ids, stream_ids, expected, counts) with ordinality
                      as u(command_id, stream_id, expected, n, place)
                ) c
                -- The stream stands at the expected version when that one is there and the next is not: two points of
                -- the index, where its end would be a page of them on a long stream. The end is sought when it does not.
                left join lateral (
                  select true as there from events e
                   where e.stream_id = c.stream_id and e.version = c.expected - c.before limit 1
                ) it on c.expected > c.before
                left join lateral (
                  select true as there from events e
                   where e.stream_id = c.stream_id and e.version = c.expected - c.before + 1 limit 1
                ) next on true
                cross join lateral (
                  select coalesce(c.expected >= c.before and (c.expected = c.before or it.there) and next.there is null,
                                  false) as fits
                ) f
                left join lateral (
                  select e.version from events e
                   where not f.fits and e.stream_id = c.stream_id order by e.version desc limit 1
                ) last on true
                left join lateral (
                  select e.version, e.position, e.stream_id from events e
                   where e.command_id = c.command_id order by e.ordinal desc limit 1
                ) left_events on true
                left join lateral (
                  select q.version, q.position, q.stream_id from commands q
                   where here.any_without_events and q.command_id = c.command_id limit 1
                ) left_none on true
                cross join lateral (select case when f.fits then c.expected else coalesce(last.version, 0) + c.before end as actual) s
                cross join lateral (
                  select coalesce(left_events.position, left_none.position) is not null as done,
                         coalesce(left_events.version, left_none.version) as done_version,
                         coalesce(left_events.position, left_none.position) as done_position,
                         coalesce(left_events.stream_id, left_none.stream_id) as done_stream
                ) d
                cross join lateral (
                  select coalesce(here.behind[c.place], false) as behind,
                         c.expected is not null and not f.fits as wrong,
                         append.blockers[c.place] is not null as taken
                ) b
            ) j
        ) w
       order by w.place
    ) v;

  if counts is not null then
    select array_agg(u.place order by u.place, o), array_agg(o order by u.place, o) into places, ordinals
      from unnest(counts) with ordinality as u(n, place), generate_series(1, u.n) as o;
  end if;

  insert into events (position, stream_id, version, ordinal, schema_version, event_id, command_id, correlation_id,
                      causation_id, recorded_at, category, type, actor, tenant, traceparent, data)
  select positions[e.place] - e.n + e.ordinal, stream_ids[e.place], versions[e.place] - e.n + e.ordinal, e.ordinal,
         kind_versions[e.kind], uuidv7(), command_ids[e.place],
         coalesce(correlation_ids[e.place], command_ids[e.place]), causation_ids[e.place], moment,
         kind_categories[e.kind], kind_types[e.kind], actors[e.place], tenants[e.place], traceparents[e.place],
         e.payload::json
    from (
      select coalesce(u.place, u.k)::integer as place, coalesce(u.ordinal, 1) as ordinal, coalesce(u.kind, 1) as kind,
             u.payload, case when counts is null then 1 else counts[u.place] end as n
        from unnest(payloads, places, ordinals, kinds) with ordinality as u(payload, place, ordinal, kind, k)
    ) e
   where verdicts[e.place] = 'a';
  get diagnostics appended = row_count;

  if counts is not null and 0 = any(counts) then
    insert into commands (command_id, stream_id, version, position)
    select u.command_id, u.stream_id, u.version, u.position
      from unnest(command_ids, stream_ids, counts, verdicts, versions, positions)
        as u(command_id, stream_id, n, verdict, version, position)
     where u.verdict = 'a' and u.n = 0;
  end if;

  if cardinality(claim_commands) > 0 then
    -- Of all that a command says of one claim, the last word holds.
    with last_word as (
      select distinct on (k.command, k.name, k.value) k.take, k.name, k.value, stream_ids[k.command] as stream_id
        from unnest(claim_commands, claim_takes, claim_names, claim_values) with ordinality
          as k(command, take, name, value, place)
       where verdicts[k.command] = 'a'
       order by k.command, k.name, k.value, k.place desc
    ), released as (
      delete from claims using last_word l
       where not l.take and claims.name = l.name and claims.value = l.value and claims.stream_id = l.stream_id
    )
    insert into claims (name, value, stream_id)
    select l.name, l.value, l.stream_id from last_word l where l.take
    -- Its own stream may hold it already; another stream's would have been verdict t.
    on conflict (name, value) do nothing;
  end if;

  if appended > 0 then
    update head set position = base + appended, recorded_at = moment;
    perform pg_notify('headwater', 'log:' || base + appended);
  end if;
end $$;
comment on function headwater.append is
  'Appends many commands'' events in one call: contiguous positions, a verdict for each command, one doorbell.';

create table headwater.kinds (
  category text collate "C" not null,
  type text collate "C" not null,
  schema_version smallint not null,
  count bigint not null,
  first_position bigint not null,
  last_position bigint not null,
  constraint kinds_pkey primary key (category, type, schema_version)
);
comment on table headwater.kinds is
  'What kinds of events the log holds, as far as headwater.counted says: whether the code reads all of them is asked at '
  'each start, and each time only the new end of the log is counted. Derived: may be emptied together with counted.';

create table headwater.counted (
  singleton boolean primary key default true check (singleton),
  position bigint not null
);
comment on table headwater.counted is 'One row: how far headwater.kinds has counted the log.';
insert into headwater.counted (singleton, position) values (true, 0);

-- -------------------------------------------------------------------------------------------------------- projections

create table headwater.projections (
  name text collate "C" not null,
  generation integer not null check (generation > 0),
  version integer not null,
  fingerprint text not null,
  table_name text not null,
  position bigint not null default 0,
  state text collate "C" not null check (state in ('live', 'building', 'retired')),
  repairs integer not null default 0,
  edition bigint not null generated always as ((generation::bigint << 32) + repairs) stored,
  live_since bigint,
  retired_at timestamptz,
  failure text,
  verified_at timestamptz,
  differences bigint,
  owner uuid,
  fence bigint not null default 0,
  updated_at timestamptz not null default now(),
  constraint projections_pkey primary key (name, generation)
);
comment on table headwater.projections is
  'How far each projection has come. The position moves by compare-and-swap in the transaction that writes the rows: '
  'that is what makes them exactly once.';
comment on column headwater.projections.generation is 'The physical table of the rows; clients read a view on the live one.';
comment on column headwater.projections.fingerprint is 'Of the declared columns: another means the rows are made again.';
comment on column headwater.projections.owner is
  'The worker that leases it. It is free when there is none, or when that worker''s own lease has run out.';
comment on column headwater.projections.fence is 'Rises with each lease, so that a holder that slept cannot commit.';
comment on column headwater.projections.state is
  'live: clients read it. building: made beside the live one. retired: was live, or was given up; its table is dropped after a time, the '
  'row stays, so that older code that starts again does not take its own declaration for a new one.';
comment on column headwater.projections.repairs is
  'How often rows were changed by events that the position had passed long before: dead letters that were folded after all.';
comment on column headwater.projections.edition is
  'Another one means that rows may differ though no position says so: readers start again from a snapshot.';
comment on column headwater.projections.live_since is
  'The position at which it took the place of another, or was last repaired: cursors from up to there are of other rows.';
comment on column headwater.projections.failure is 'Why it stands still, while it is built.';
comment on column headwater.projections.differences is 'Found by `headwater verify` at verified_at.';
create unique index projections_live on headwater.projections (name) where state = 'live';

create table headwater.tombstones (
  projection text collate "C" not null,
  generation integer not null,
  key uuid not null,
  position bigint not null,
  removed_at timestamptz not null default now(),
  constraint tombstones_pkey primary key (projection, generation, key),
  constraint tombstones_projection_fkey foreign key (projection, generation)
    references headwater.projections (name, generation) on delete cascade
);
comment on table headwater.tombstones is 'Removed rows, so that a client that was away learns of them.';
create index tombstones_position on headwater.tombstones (projection, generation, position);

create table headwater.workers (
  worker_id uuid primary key,
  name text not null,
  runs text[] collate "C" not null,
  lease_until timestamptz not null,
  started_at timestamptz not null default now()
);
comment on table headwater.workers is
  'One row, and one heartbeat, for each process that keeps projections, however many it keeps.';
comment on column headwater.workers.runs is
  'What its code can keep: name and fingerprint of each read model, so that old and new code share out only what is theirs.';

create table headwater.dead_letters (
  projection text collate "C" not null,
  generation integer not null,
  key uuid not null,
  position bigint not null,
  parked_at timestamptz not null default now(),
  attempts integer not null default 0 check (attempts >= 0),
  error text check (octet_length(error) <= 2048),
  traceback_hash text,
  next_attempt_at timestamptz,
  discarded boolean not null default false,
  constraint dead_letters_pkey primary key (projection, generation, key, position),
  constraint dead_letters_projection_fkey foreign key (projection, generation)
    references headwater.projections (name, generation) on delete cascade
);
comment on table headwater.dead_letters is
  'Events that a fold failed on, and those of the same key that wait behind them, in order (error is null).';
comment on column headwater.dead_letters.next_attempt_at is
  'When the key is tried again, on its first letter; null there means parked until a person acts.';
comment on column headwater.dead_letters.discarded is 'The worker passes over it, and removes it, with the next attempt.';
create index dead_letters_due on headwater.dead_letters (projection, generation, next_attempt_at)
  where next_attempt_at is not null;

-- ------------------------------------------------------------------------------------------------------------ streams

create table headwater.snapshots (
  stream_id uuid not null,
  fold_version integer not null,
  version integer not null check (version > 0),
  event_id uuid not null,
  taken_at timestamptz not null default now(),
  shape text not null,
  seal text not null,
  state json not null,
  constraint snapshots_pkey primary key (stream_id, fold_version)
);
comment on table headwater.snapshots is
  'States of long streams, to go on from instead of the start. Derived: any may be deleted at any time.';
comment on column headwater.snapshots.fold_version is 'Of the decider that took it; one of another is not used.';
comment on column headwater.snapshots.event_id is
  'The event of that version that it stands after; when the stream has another there, or none, it is not used.';
comment on column headwater.snapshots.shape is 'Of the state''s fields: a code with others does not use it.';
comment on column headwater.snapshots.seal is 'Of the row as it was written: a row that was changed is not used.';

create table headwater.timers (
  timer_id uuid primary key,
  stream_id uuid not null,
  due_at timestamptz not null,
  message json not null
);
comment on table headwater.timers is 'What falls due, derived from the streams of sagas.';
create index timers_due on headwater.timers (due_at);

create table headwater.subject_keys (
  subject_id uuid primary key,
  key bytea,
  created_at timestamptz not null default now(),
  forgotten_at timestamptz,
  constraint subject_keys_forgotten check ((key is null) = (forgotten_at is not null))
);
comment on table headwater.subject_keys is
  'The key that a person''s fields are encrypted with; forgetting the person is dropping the key, never an event.';
