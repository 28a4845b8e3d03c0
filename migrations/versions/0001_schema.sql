-- The schema of Headwater: the log, then everything that is derived from it. Requires PostgreSQL 15.
-- Tables first, functions at the end. Names that are compared or indexed are collated "C": by bytes, and faster.

-- The schema `headwater` exists by then, since it holds the version of the schema, too: see `postgres.migrations`.

-- ============================================================================================================ the log

create table headwater.head (
  singleton boolean primary key default true check (singleton),
  position bigint not null check (position >= 0),
  recorded_at timestamptz not null,
  epoch integer not null default 1,
  timeline text collate "C",
  made_as oid
);
comment on table headwater.head is
  'One row: the end of the log. append() holds the lock of this row until it commits, so positions become visible in their '
  'own order: a reader that has seen N has seen every event up to N.';
comment on column headwater.head.recorded_at is
  'When the last event was recorded. It never decreases from one position to the next, even when the clock is set back.';

comment on column headwater.head.epoch is 'The current epoch: see headwater.epochs.';
comment on column headwater.head.timeline is
  'The timeline of PostgreSQL on which the epoch began. On another one, append() refuses to write until a new epoch has begun. '
  'Null until the first process connects.';
comment on column headwater.head.made_as is
  'The oid of this table when the epoch began. A restored dump has another: then append() refuses in the same way.';

insert into headwater.head (singleton, position, recorded_at) values (true, 0, '-infinity');


create table headwater.epochs (
  epoch integer primary key check (epoch > 0),
  tag text collate "C" not null unique,
  server text collate "C",
  position bigint not null check (position >= 0),
  reason text not null,
  began_at timestamptz not null default clock_timestamp()
);
comment on table headwater.epochs is
  'A position is a number of one epoch. A new epoch begins when the log may have lost its end: a replica was promoted, or a '
  'backup restored. What processes and clients know of later positions of an earlier epoch is then void.';
comment on column headwater.epochs.tag is
  'Random: two copies of a database that both go on begin different epochs, though with the same number.';
comment on column headwater.epochs.server is
  'The cluster''s system identifier, its timeline, the oid of the database, and the oid of the table headwater.head, which a '
  'restored dump makes anew. Another value means a new epoch. Null until the first process connects.';
comment on column headwater.epochs.position is
  'Up to here, positions mean the same in this epoch and in the one before: the end of the log when the epoch began, or less if '
  'others had gone on by then on a log that lacked a command.';

insert into headwater.epochs (epoch, tag, position, reason)
values (1, left(gen_random_uuid()::text, 8), 0, 'the log was created');


create table headwater.lost (
  tag text collate "C" not null,
  position bigint not null,
  stream_id uuid,
  version integer,
  command_id uuid,
  type text collate "C",
  known_by text not null,
  noted_at timestamptz not null default now(),
  primary key (tag, position)
);
comment on table headwater.lost is
  'Positions that processes and clients knew and that the log has lost, as far as they reported them, for `headwater lost`. '
  'tag: the epoch to which the position belongs. Only the position is known of what a client''s cursor names.';


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
  command text collate "C",
  actor text,
  tenant text,
  traceparent text,
  data json not null,
  constraint events_pkey primary key (position),
  constraint events_stream_version_key unique (stream_id, version),
  constraint events_command_ordinal_key unique (command_id, ordinal)
);
comment on table headwater.events is
  'Every event, once, never changed. No index on category or type: readers follow by position, and every append would pay '
  'for an index that is rarely read.';
comment on column headwater.events.position is 'The place in the log: contiguous from 1, in commit order.';
comment on column headwater.events.version is 'The place in the stream, from 1. Its unique index is the optimistic concurrency control.';
comment on column headwater.events.ordinal is
  'The place among the events of one command, from 1. With command_id it is the idempotency key.';
comment on column headwater.events.schema_version is 'The version of the shape of the data, declared by the event''s class.';
comment on column headwater.events.command is
  'The name of the command, so that a command id that is used again for another command is detected. Null for a record that '
  'Headwater itself writes.';
comment on column headwater.events.data is 'json, not jsonb: stored as written, and cheaper to write and to read.';

-- An event of a command that nothing caused is its own correlation, and events_command_ordinal_key finds it. So only events
-- that another command caused pay for this index.
create index events_correlation on headwater.events (correlation_id, position) where correlation_id <> command_id;


create table headwater.commands (
  command_id uuid primary key,
  stream_id uuid not null,
  version integer not null,
  position bigint not null,
  name text collate "C"
);
comment on table headwater.commands is
  'Accepted commands that left no event. All other accepted commands are found by events_command_ordinal_key.';
comment on column headwater.commands.name is 'The name of the command, like events.command.';


create table headwater.claims (
  name text collate "C" not null,
  value text collate "C" not null,
  stream_id uuid not null,
  constraint claims_pkey primary key (name, value)
);
comment on table headwater.claims is
  'Values that belong to one stream at a time, such as an e-mail address. An append takes and releases them together with '
  'its events.';

create index claims_stream on headwater.claims (stream_id);


create table headwater.snapshots (
  stream_id uuid not null,
  fold_version integer not null,
  version integer not null check (version > 0),
  event_id uuid not null,
  taken_at timestamptz not null default now(),
  shape text not null,
  seal text not null,
  state json not null,
  primary key (stream_id, fold_version)
);
comment on table headwater.snapshots is
  'States of long streams, so that a decision need not read the stream from its start. Derived: any row may be deleted at any '
  'time.';
comment on column headwater.snapshots.fold_version is 'The fold_version of the decider. A decider with another one ignores the row.';
comment on column headwater.snapshots.event_id is
  'The event of that version. A row whose stream has another event there, or none, is ignored.';
comment on column headwater.snapshots.shape is 'Hash of the fields of the state. Code with other fields ignores the row.';
comment on column headwater.snapshots.seal is 'Hash of the row as it was written. A row that was changed is ignored.';


create table headwater.kinds (
  category text collate "C" not null,
  type text collate "C" not null,
  schema_version smallint not null,
  count bigint not null,
  first_position bigint not null,
  last_position bigint not null,
  primary key (category, type, schema_version)
);
comment on table headwater.kinds is
  'The kinds of events that the log holds, up to the position in headwater.counted. Each start checks that the app can read '
  'all of them, and counts only what was appended since. Derived: may be emptied together with counted.';

create table headwater.counted (
  singleton boolean primary key default true check (singleton),
  position bigint not null
);
comment on table headwater.counted is 'One row: the position up to which headwater.kinds has counted the log.';

insert into headwater.counted (singleton, position) values (true, 0);


-- ========================================================================================================== consumers

create table headwater.workers (
  worker_id uuid primary key,
  name text not null,
  runs text[] collate "C" not null,
  lease_until timestamptz not null,
  started_at timestamptz not null default now()
);
comment on table headwater.workers is 'One row, and one heartbeat, for each process that runs consumers, however many it runs.';
comment on column headwater.workers.runs is
  'The units that the worker''s code can run: name and fingerprint of each. Old and new code share out only their own.';


create table headwater.projections (
  name text collate "C" not null,
  generation integer not null check (generation > 0),
  version integer not null,
  fingerprint text not null,
  earlier text[] not null default '{}',
  enums text not null default '{}',
  table_name text not null,
  state text collate "C" not null check (state in ('live', 'building', 'retired')),
  position bigint not null default 0,
  rewind_to bigint,
  owner uuid,
  fence bigint not null default 0,
  repairs integer not null default 0,
  edition bigint generated always as ((generation::bigint << 32) + repairs) stored not null,
  live_since bigint,
  forgotten bigint not null default 0,
  failure text,
  hindrance text,
  differences bigint,
  verified_at timestamptz,
  retired_at timestamptz,
  updated_at timestamptz not null default now(),
  constraint projections_pkey primary key (name, generation)
);
comment on table headwater.projections is
  'The checkpoint of each consumer: read models, sagas, reactors and the schedules. The position moves by compare-and-swap in '
  'the transaction that writes the rows, which makes them exactly once.';
comment on column headwater.projections.generation is
  'The physical table of the rows. Clients read an SQL view on the live one. Always 1 for a saga or a reactor.';
comment on column headwater.projections.fingerprint is
  'Hash of the declaration: columns, enums, indexes and version; behind a point, the kinds of events that the code takes. For '
  'a saga or a reactor only the latter. A different first part means that the rows are built again, a different second part '
  'that older code must leave the unit alone.';
comment on column headwater.projections.earlier is
  'Fingerprints of older code that has run the unit and must not take it back.';
comment on column headwater.projections.enums is 'JSON: the declared values of each enum column.';
comment on column headwater.projections.state is
  'live: clients read it. building: filled beside the live one. retired: was live, or was given up. The table of a retired '
  'generation is dropped after a time; its row stays, so that older code that starts again does not take its own declaration '
  'for a new one.';
comment on column headwater.projections.rewind_to is
  'The end of the log when it went back to before the checkpoint. Before the unit goes on, its worker undoes what is later.';
comment on column headwater.projections.owner is
  'The worker that leases the unit. It is free when this is null, or when that worker''s lease has expired.';
comment on column headwater.projections.fence is
  'The fencing token: it grows with each change of the owner, so that a paused former owner cannot commit.';
comment on column headwater.projections.repairs is
  'How often rows were changed by events that the position had passed before: dead letters that were folded later.';
comment on column headwater.projections.edition is
  'Changes whenever rows may differ though no position says so. Subscriptions then start again from the current rows.';
comment on column headwater.projections.live_since is
  'The position at which the generation went live or was last repaired. A cursor from before it refers to other rows.';
comment on column headwater.projections.forgotten is
  'Tombstones up to this position are pruned. A cursor from before it would miss removals.';
comment on column headwater.projections.failure is
  'Why the build stopped. No worker continues it; the next build starts from nothing.';
comment on column headwater.projections.hindrance is 'What the swap waits for. It is tried again without an operator.';
comment on column headwater.projections.differences is 'The number of differences that `headwater verify` found at verified_at.';

create unique index projections_live on headwater.projections (name) where state = 'live';


create table headwater.invariants (
  name text collate "C" primary key,
  position bigint not null,
  violations bigint not null,
  checked_at timestamptz not null default now()
);
comment on table headwater.invariants is
  'The last result of `headwater verify` for each invariant that the app declares. Nothing depends on it.';
comment on column headwater.invariants.violations is
  'The number of keys whose events up to the position contradict the invariant.';


create table headwater.dead_letters (
  projection text collate "C" not null,
  generation integer not null,
  key text collate "C" not null,
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
  'Events that a consumer failed on, and the later events of the same key, which wait behind them in order (error is null).';
comment on column headwater.dead_letters.key is 'The text of a row''s key, or the id of a stream, a saga''s instance or an order.';
comment on column headwater.dead_letters.next_attempt_at is
  'When the key is tried again, on its first event. Null on the first event: parked until an operator acts.';
comment on column headwater.dead_letters.discarded is 'The worker skips the event, and removes the row, with the next attempt.';

create index dead_letters_due on headwater.dead_letters (projection, generation, next_attempt_at)
  where next_attempt_at is not null;
create index dead_letters_failed on headwater.dead_letters (projection, generation) where error is not null;


create table headwater.tombstones (
  projection text collate "C" not null,
  generation integer not null,
  key text collate "C" not null,
  position bigint not null,
  removed_at timestamptz not null default now(),
  constraint tombstones_pkey primary key (projection, generation, key),
  constraint tombstones_projection_fkey foreign key (projection, generation)
    references headwater.projections (name, generation) on delete cascade
);
comment on table headwater.tombstones is 'Removed rows, so that a subscriber that was away learns of their removal.';
comment on column headwater.tombstones.key is 'The text of the row''s key.';

create index tombstones_position on headwater.tombstones (projection, generation, position);


-- ============================================================================================== sagas and schedules

create table headwater.sagas (
  stream_id uuid primary key,
  saga text collate "C" not null,
  key uuid not null,
  version integer not null check (version >= 0),
  position bigint not null,
  status text collate "C" not null check (status in ('running', 'undoing', 'parked', 'done', 'abandoned')),
  state json not null,
  steps json not null,
  step text,
  waiting_for text,
  since timestamptz not null,
  reason text,
  compensates boolean not null,
  started_at timestamptz not null,
  finished_at timestamptz,
  correlation_id uuid not null,
  unique (key, saga)
);
comment on table headwater.sagas is
  'The state of each saga instance, for operators, and for a worker that resumes them. Derived from the instances'' streams, and '
  'written together with the saga''s checkpoint.';
comment on column headwater.sagas.version is
  'The version of the instance''s stream. 0: its first event is parked, and position is the position of that event.';
comment on column headwater.sagas.step is 'The command that the instance waits for. Null: it waits for something else.';
comment on column headwater.sagas.since is 'When the instance last changed.';
comment on column headwater.sagas.compensates is 'True if steps were undone, or are being undone.';

create index sagas_open on headwater.sagas (saga, status, since) where status in ('running', 'undoing', 'parked');
create index sagas_since on headwater.sagas (since);


create table headwater.timers (
  stream_id uuid not null,
  message text collate "C" not null,
  saga text collate "C" not null,
  due_at timestamptz not null,
  primary key (stream_id, message)
);
comment on table headwater.timers is
  'Messages that saga instances send to themselves later. Derived from the instances'' streams, which decide when they differ.';

create index timers_due on headwater.timers (saga, due_at, stream_id);


create table headwater.schedules (
  name text collate "C" primary key,
  begun_at timestamptz not null,
  fired_at timestamptz,
  outcome text check (octet_length(outcome) <= 2048),
  finished_at timestamptz,
  constraint schedules_fired check ((fired_at is null) = (outcome is null) and (fired_at is null) = (finished_at is null))
);
comment on table headwater.schedules is
  'One row for each schedule that a worker has ever seen. It changes under the lease of the unit `schedules`. The row of a '
  'schedule that is no longer declared stays; the schedule continues from it when it is declared again.';
comment on column headwater.schedules.begun_at is 'When a worker first saw the schedule. Moments that were due before are not fired.';
comment on column headwater.schedules.fired_at is 'The last due moment that was fired; not the time at which it was fired.';
comment on column headwater.schedules.outcome is
  'Its result: accepted, the code of a refusal, or the error that the schedule''s code raised.';
comment on column headwater.schedules.finished_at is 'When the outcome was known.';


-- ========================================================================================================= monitoring

create table headwater.processes (
  process_id uuid primary key,
  name text not null,
  serves boolean not null,
  started_at timestamptz not null default now(),
  seen_until timestamptz not null,
  report json not null
);
comment on table headwater.processes is
  'What each process reports about itself every few seconds, for `headwater status`. Nothing depends on it.';
comment on column headwater.processes.process_id is 'The worker_id of the process, where it is a worker.';
comment on column headwater.processes.seen_until is 'The process counts as running until then, unless it reports again.';
comment on column headwater.processes.report is
  'The speed of its consumers, the verdicts on its commands, and the delay from an event to the subscribers.';


-- ========================================================================================================== functions

create function headwater.refuse_change() returns trigger language plpgsql as $$
begin
  raise exception 'headwater.% is append-only: % is refused', tg_table_name, lower(tg_op)
    using errcode = 'insufficient_privilege', hint = 'Append an event that says what has changed.';
end $$;
comment on function headwater.refuse_change() is 'Rejects UPDATE, DELETE and TRUNCATE.';

create trigger append_only before update or delete or truncate on headwater.events
  for each statement execute function headwater.refuse_change();
-- ALWAYS: also where session_replication_role switches ordinary triggers off.
alter table headwater.events enable always trigger append_only;


-- From version 18 on, PostgreSQL has uuidv7() itself. Functions find that one first: pg_catalog precedes their search_path.
do $do$
begin
  if to_regprocedure('pg_catalog.uuidv7()') is null then
    -- RFC 9562, version 7: milliseconds in 48 bits, their fraction in 12 (section 6.2, method 3), then 62 random bits.
    -- The microseconds are divided so that one number has the first two parts; the digit of the version goes between them.
    create function headwater.uuidv7() returns uuid language sql volatile parallel safe
    return overlay(
      lpad(to_hex((extract(epoch from clock_timestamp()) * 1000000)::bigint * 512 / 125), 15, '0')
      || right(gen_random_uuid()::text, 17) placing '7' from 13 for 0)::uuid;
    comment on function headwater.uuidv7() is 'A time-ordered UUID, where PostgreSQL itself has no such function.';
  end if;
end $do$;


create function headwater.timeline_now() returns text language sql volatile as $$
  select pg_catalog.left(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_insert_lsn()), 8)
$$;
comment on function headwater.timeline_now() is 'The timeline on which PostgreSQL writes.';


create function headwater.refuse_epoch() returns void language plpgsql as $$
begin
  raise exception 'the epoch of the log that the call was made for has ended' using errcode = 'HW001';
end $$;
comment on function headwater.refuse_epoch() is 'Fails the append of a process that does not know the current epoch yet.';


create function headwater.server() returns text language sql stable
  set search_path = pg_catalog, pg_temp
as $$
  select format('%s/%s/%s/%s', (select system_identifier from pg_control_system()),
                headwater.timeline_now(),
                (select oid from pg_database where datname = current_database()),
                (select tableoid from headwater.head))
$$;
comment on function headwater.server() is
  'The cluster''s system identifier, its timeline, and the oids of the database and of the table headwater.head: what differs '
  'after a promotion or a restore.';


-- Called on each new connection. tag, positions, command_ids: the epoch that the caller knows, and commands of it that were
-- accepted at these positions, the latest first. A copy of the files of the same cluster has the same server; that its log is
-- another one shows only because it lacks such a command.
--
-- A call names the latest command only. If it is gone, the call returns nothing, and the caller calls again with all that it
-- knows (all_known): others may have written since, so the new epoch begins after the latest one that is still there.
create function headwater.enter_epoch(tag text, positions bigint[], command_ids uuid[], all_known boolean)
returns setof headwater.epochs language plpgsql volatile
  set search_path = headwater, pg_temp
as $$
declare
  current epochs;
  here text;
  kept bigint;
  beyond boolean := false;
begin
  select e.* into strict current from head h join epochs e on e.epoch = h.epoch;
  if not pg_is_in_recovery() and not current_setting('transaction_read_only')::boolean then
    here := server();
    if current.server is null then
      perform from head for update;
      update epochs e set server = here, tag = left(gen_random_uuid()::text, 8), began_at = clock_timestamp()
       where e.epoch = current.epoch and e.server is null;
      update head set timeline = split_part(here, '/', 2), made_as = tableoid where timeline is null;
    elsif current.server <> here then
      perform begin_epoch(current.epoch, format('the server is %s, was %s', here, current.server));
    elsif current.tag = enter_epoch.tag and cardinality(positions) > 0
          and not exists (select from events e where e.position = positions[1] and e.command_id = command_ids[1]) then
      if not all_known then
        return;
      end if;
      select coalesce(max(k.position), 0) into kept
        from unnest(positions, command_ids) as k(position, command_id)
        join events e on e.position = k.position and e.command_id = k.command_id;
      perform begin_epoch(current.epoch, format('position %s was known and is gone', positions[1]), kept);
    else
      begin
        -- Not waited for: a lock on the checkpoints must not keep a process from connecting. A later connection looks again.
        lock table projections in access share mode nowait;
        beyond := exists (select from projections p, head h where p.position > h.position and p.rewind_to is null);
      exception
        when lock_not_available then null;
      end;
      if beyond then
        perform begin_epoch(current.epoch, 'a checkpoint was beyond the end of the log');
      end if;
    end if;
  end if;
  return query select * from epochs e order by e.epoch;
end $$;
comment on function headwater.enter_epoch(text, bigint[], uuid[], boolean) is
  'Begins a new epoch if the log may have lost its end, and returns all epochs, the current one last.';


-- kept: up to there, the log is still that of the known epoch. Null: up to its end.
create function headwater.begin_epoch(known integer, why text, kept bigint default null) returns void language plpgsql volatile
  set search_path = headwater, pg_temp
as $$
declare
  here constant text := server();
  ended bigint;
begin
  -- Of the processes that find it at once, the first begins the epoch and the others find it begun.
  select h.position into ended from head h where h.epoch = known for update;
  if not found then
    return;
  end if;
  insert into epochs (epoch, tag, server, position, reason)
  values (known + 1, left(gen_random_uuid()::text, 8), here, least(kept, ended), why);
  update head set epoch = known + 1, timeline = split_part(here, '/', 2), made_as = tableoid;
  -- Every lease ends, and no fencing token of the lost time is valid again.
  update projections
     set owner = null, fence = fence + (1::bigint << 32),
         rewind_to = case when position > ended then least(rewind_to, ended) else rewind_to end;
  perform pg_notify('headwater', 'epoch:' || known + 1);
end $$;
comment on function headwater.begin_epoch(integer, text, bigint) is
  'Ends the known epoch, unless it has ended already.';


-- append: the events of many commands in one call, with a verdict for each command.
--
--   a  accepted       versions, positions: of the command's last event
--   d  done before    versions, positions, streams: of the first run; nothing is written
--   c  conflict       versions: the actual version of the stream
--   t  claim taken    blockers: the first claim, by its place in the claim arrays, that another stream holds
--   m  moved          a stream that the command holds is at another version than hold_versions says
--   b  behind         an earlier command of this call touched the same stream and lost, or names the same command id or
--                     claim: the command must be decided again
--
-- A command is judged as if the earlier commands on its stream were accepted, and falls with the first that is not. So a
-- command that loses costs its neighbours nothing and takes no position.
--
-- hold_: streams other than its own whose version must still be the one at which the command was decided. The arrays are null
-- if no command of the call holds any.
--
-- of_epoch: the epoch that the commands were decided in. If it has ended, or PostgreSQL writes on another timeline or to
-- another table than when it began, the call fails with the SQLSTATE HW001. Null: not checked.
--
-- Arrays whose elements are all alike are null, because each element costs both sides: counts when every command has one
-- event, kinds when every event is of the first kind, metadata that no command has. The kind_ arrays hold each distinct
-- (category, type, schema version) once.
create function headwater.append(
  command_ids uuid[], names text[], stream_ids uuid[], expected integer[], counts integer[],
  kind_categories text[], kind_types text[], kind_versions smallint[], kinds integer[], payloads text[],
  correlation_ids uuid[], causation_ids uuid[], actors text[], tenants text[], traceparents text[],
  claim_commands integer[], claim_takes boolean[], claim_names text[], claim_values text[],
  hold_commands integer[], hold_streams uuid[], hold_versions integer[], of_epoch integer,
  out verdicts "char"[], out versions integer[], out positions bigint[], out streams uuid[], out blockers integer[]
) language plpgsql volatile
  -- JIT compilation, a custom plan for each call, or a search for tables elsewhere would each cost more than the call.
  set jit = off
  set plan_cache_mode = force_generic_plan
  set search_path = headwater, pg_temp
as $$
<<batch>>
declare
  base bigint;             -- the position before this call
  passed boolean;
  moment timestamptz;
  behind boolean[];        -- by command: an earlier command of this call names the same command id or claim
  moved integer[];         -- commands that hold a stream which has moved on
  newly_moved integer[];
  places integer[];        -- by event: the place of its command in this call
  ordinals integer[];      -- by event: its place among the events of its command
  any_without_events boolean;
  appended integer;
begin
  -- Appends take turns at this lock, so everything below sees the result of every earlier append.
  select position, greatest(recorded_at, clock_timestamp()),
         epoch <> of_epoch or timeline <> timeline_now() or made_as <> tableoid
    into strict base, moment, passed from head for update;
  if passed then
    perform refuse_epoch();
  end if;
  any_without_events := exists (select from commands);

  -- 1. Of the commands that name the same command id or claim, only the first proceeds. Most calls skip this.
  --    One pass over commands and one over claims, combined by grouping: a join of the two is planned for ten of each and
  --    would compare all with all.
  if cardinality(claim_commands) > 0
     or (select count(distinct id) from unnest(command_ids) as id) < cardinality(command_ids) then
    with repeated_id as (
      select u.place as command, u.place > min(u.place) over (partition by u.command_id) as behind,
             null::integer as blocker
        from unnest(command_ids) with ordinality as u(command_id, place)
    ), claim as (
      select command, take, name collate "C" as name, value collate "C" as value, place
        from unnest(claim_commands, claim_takes, claim_names, claim_values) with ordinality
          as k(command, take, name, value, place)
    ), repeated_claim as (
      select claim.command, claim.command > min(claim.command) over (partition by claim.name, claim.value) as behind,
             case when claim.take and held.stream_id <> stream_ids[claim.command] then claim.place::integer end as blocker
        from claim
        left join lateral (
          select c.stream_id from claims c where c.name = claim.name and c.value = claim.value limit 1
        ) held on true
    ), by_command as (
      select r.command, bool_or(r.behind) as behind, min(r.blocker) as blocker
        from (select * from repeated_id union all select * from repeated_claim) r
       group by r.command
    )
    select array_agg(b.behind order by b.command), array_agg(b.blocker order by b.command)
      into behind, blockers
      from by_command b;
  end if;

  -- Once, unless a command holds a stream that has moved on. It loses then, and the others are judged anew: some may rest on it.
  loop
    -- 2. The verdicts. Each LEFT JOIN LATERAL ... LIMIT 1 is an index look-up, however long the log is: EXISTS and plain joins
    --    became hash plans over the whole table. Each step is named once and used once, so that PostgreSQL inlines it.
    with command as (
      -- before: events that earlier commands of this call add to the same stream
      select u.place, u.command_id, u.stream_id, u.expected, coalesce(u.n, 1) as n,
             (sum(coalesce(u.n, 1)) over (partition by u.stream_id order by u.place rows unbounded preceding)
              - coalesce(u.n, 1))::integer as before
        from unnest(command_ids, stream_ids, expected, counts) with ordinality
          as u(command_id, stream_id, expected, n, place)
    ), at_version as (
      -- fits: the stream is at the expected version, that is, that event exists and the next does not. Two index look-ups;
      -- the end of a long stream would be a page of index entries.
      select c.*, coalesce(c.expected >= c.before and (c.expected = c.before or this.found) and next.found is null, false) as fits
        from command c
        left join lateral (
          select true as found from events e
           where e.stream_id = c.stream_id and e.version = c.expected - c.before limit 1
        ) this on c.expected > c.before
        left join lateral (
          select true as found from events e
           where e.stream_id = c.stream_id and e.version = c.expected - c.before + 1 limit 1
        ) next on true
    ), located as (
      -- actual: the version that the stream has, or will have once the earlier commands of this call are written
      select v.*, case when v.fits then v.expected else coalesce(last.version, 0) + v.before end as actual,
             coalesce(with_events.version, without_events.version) as done_version,
             coalesce(with_events.position, without_events.position) as done_position,
             coalesce(with_events.stream_id, without_events.stream_id) as done_stream
        from at_version v
        left join lateral (
          select e.version from events e
           where not v.fits and e.stream_id = v.stream_id order by e.version desc limit 1
        ) last on true
        left join lateral (
          select e.version, e.position, e.stream_id from events e
           where e.command_id = v.command_id order by e.ordinal desc limit 1
        ) with_events on true
        left join lateral (
          select q.version, q.position, q.stream_id from commands q
           where batch.any_without_events and q.command_id = v.command_id limit 1
        ) without_events on true
    ), examined as (
      select l.*, l.done_position is not null as done,
             coalesce(batch.behind[l.place], false) as is_behind,
             l.expected is not null and not l.fits as wrong,
             append.blockers[l.place] is not null as taken,
             coalesce(l.place = any (batch.moved), false) as is_moved
        from located l
    ), judged as (
      select x.*, not x.done and not x.is_behind and not x.wrong and not x.taken and not x.is_moved as ok from examined x
    ), settled as (
      -- clear: all earlier commands of this call on the stream are accepted
      select j.*, coalesce(bool_and(j.ok) over (
               partition by j.stream_id order by j.place rows between unbounded preceding and 1 preceding), true) as clear
        from judged j
    ), verdict as (
      select s.place,
             case when s.done then 'd' when s.is_behind or not s.clear then 'b' when s.wrong then 'c' when s.taken then 't'
                  when s.is_moved then 'm' else 'a' end::"char" as verdict,
             case when s.done then s.done_version when s.clear and s.ok then s.actual + s.n else s.actual end as version,
             case when s.done then s.done_position
                  else base + coalesce(sum(s.n) filter (where s.clear and s.ok) over (order by s.place), 0) end as position,
             case when s.done then s.done_stream else s.stream_id end as stream_id
        from settled s
       order by s.place
    )
    select array_agg(v.verdict), array_agg(v.version), array_agg(v.position), array_agg(v.stream_id)
      into verdicts, versions, positions, streams
      from verdict v;
    exit when hold_commands is null;

    -- 3. The commands that hold a stream which is at another version than the one at which they were decided. It is at the
    --    version of the last accepted command before them in this call, or else at that of the log.
    select array_agg(distinct h.command) into newly_moved
      from (
        select distinct on (k.place) k.command, k.version as held, coalesce(u.version, written.version, 0) as actual
          from unnest(hold_commands, hold_streams, hold_versions) with ordinality as k(command, stream_id, version, place)
          left join unnest(stream_ids, verdicts, versions) with ordinality as u(stream_id, verdict, version, place)
            on u.stream_id = k.stream_id and u.verdict = 'a' and u.place < k.command
          left join lateral (
            select e.version from events e where e.stream_id = k.stream_id order by e.version desc limit 1
          ) written on true
         where verdicts[k.command] = 'a'
         order by k.place, u.place desc nulls last
      ) h
     where h.held <> h.actual;
    exit when newly_moved is null;
    moved := moved || newly_moved;
  end loop;

  -- 4. The events of the accepted commands.
  if counts is not null then
    select array_agg(u.place order by u.place, o), array_agg(o order by u.place, o) into places, ordinals
      from unnest(counts) with ordinality as u(n, place), generate_series(1, u.n) as o;
  end if;

  insert into events (position, stream_id, version, ordinal, schema_version, event_id, command_id, correlation_id,
                      causation_id, recorded_at, category, type, command, actor, tenant, traceparent, data)
  select positions[e.place] - e.n + e.ordinal, stream_ids[e.place], versions[e.place] - e.n + e.ordinal, e.ordinal,
         kind_versions[e.kind], uuidv7(), command_ids[e.place],
         coalesce(correlation_ids[e.place], command_ids[e.place]), causation_ids[e.place], moment,
         kind_categories[e.kind], kind_types[e.kind], names[e.place], actors[e.place], tenants[e.place],
         traceparents[e.place], e.payload::json
    from (
      select coalesce(u.place, u.k)::integer as place, coalesce(u.ordinal, 1) as ordinal, coalesce(u.kind, 1) as kind,
             u.payload, case when counts is null then 1 else counts[u.place] end as n
        from unnest(payloads, places, ordinals, kinds) with ordinality as u(payload, place, ordinal, kind, k)
    ) e
   where verdicts[e.place] = 'a';
  get diagnostics appended = row_count;

  if counts is not null and 0 = any(counts) then
    insert into commands (command_id, stream_id, version, position, name)
    select u.command_id, u.stream_id, u.version, u.position, u.name
      from unnest(command_ids, names, stream_ids, counts, verdicts, versions, positions)
        as u(command_id, name, stream_id, n, verdict, version, position)
     where u.verdict = 'a' and u.n = 0;
  end if;

  -- 5. Their claims. When a command takes and releases one value, its last word counts.
  if cardinality(claim_commands) > 0 then
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
    -- The stream itself may hold the value already. Another stream's would have been verdict t.
    on conflict (name, value) do nothing;
  end if;

  -- 6. The end of the log, and the doorbell.
  if appended > 0 then
    update head set position = base + appended, recorded_at = moment;
    perform pg_notify('headwater', 'log:' || base + appended);
  end if;
end $$;
comment on function headwater.append(
  uuid[], text[], uuid[], integer[], integer[], text[], text[], smallint[], integer[], text[], uuid[], uuid[], text[], text[],
  text[], integer[], boolean[], text[], text[], integer[], uuid[], integer[], integer
) is
  'Appends the events of many commands in one call: contiguous positions, a verdict for each command, one doorbell.';


-- append_plain: the fast way, for a batch of one-event commands without claims. It writes the whole batch or nothing: the
-- unique indexes detect a conflict or a repeated command id, and the exception block undoes position, events and doorbell.
-- Null: a command lost, and append() must judge the batch. behind: the command's expected version is written by an earlier
-- command of the batch.
create function headwater.append_plain(
  command_ids uuid[], names text[], stream_ids uuid[], expected integer[], behind boolean[],
  kind_categories text[], kind_types text[], kind_versions smallint[], kinds integer[], payloads text[],
  correlation_ids uuid[], causation_ids uuid[], actors text[], tenants text[], traceparents text[], of_epoch integer
) returns bigint language plpgsql volatile
  set jit = off
  set plan_cache_mode = force_generic_plan
  set search_path = headwater, pg_temp
as $$
declare
  size constant integer := cardinality(command_ids);
  base bigint;
  moment timestamptz;
  passed boolean;
  appended integer;
  -- The event ids count up from one random number (RFC 9562 section 6.2, method 2) in the lower half, so that none overflows.
  seed constant text := translate(uuidv7()::text, '-', '');
  tail constant bigint := ('x' || right(seed, 16))::bit(64)::bigint & ~(1::bigint << 61);
begin
  -- Appends take turns at this lock, so everything below sees the result of every earlier append.
  update head set position = position + size, recorded_at = greatest(recorded_at, clock_timestamp())
    returning position - size, recorded_at, epoch <> of_epoch or timeline <> timeline_now() or made_as <> tableoid,
              pg_notify('headwater', 'log:' || position)
    into strict base, moment, passed;
  if passed then
    perform refuse_epoch();
  end if;

  -- The unique indexes check that no other event follows an expected version and that no command id has left an event. One
  -- look at headwater.commands serves the whole batch: planned while that table is empty, it costs a scan of few rows at
  -- most. OFFSET 0 keeps the other EXISTS an index look-up, however long the log is.
  insert into events (position, stream_id, version, ordinal, schema_version, event_id, command_id, correlation_id,
                      causation_id, recorded_at, category, type, command, actor, tenant, traceparent, data)
  select base + u.place, u.stream_id, u.expected + 1, 1, kind_versions[coalesce(u.kind, 1)],
         (left(seed, 16) || to_hex(tail + u.place))::uuid, u.command_id,
         coalesce(u.correlation_id, u.command_id), u.causation_id, moment,
         kind_categories[coalesce(u.kind, 1)], kind_types[coalesce(u.kind, 1)], u.name, u.actor, u.tenant, u.traceparent,
         u.payload::json
    from unnest(command_ids, names, stream_ids, expected, behind, kinds, payloads, correlation_ids, causation_ids, actors,
                tenants, traceparents)
      with ordinality as u(command_id, name, stream_id, expected, behind, kind, payload, correlation_id, causation_id,
                           actor, tenant, traceparent, place)
   where not exists (select from commands c where c.command_id = any (command_ids))
         and (u.behind is true or u.expected = 0
              or exists (select from events e where e.stream_id = u.stream_id and e.version = u.expected offset 0));
  get diagnostics appended = row_count;
  if appended < size then
    raise unique_violation;
  end if;
  return base;
exception
  when unique_violation then
    return null;
end $$;
comment on function headwater.append_plain(
  uuid[], text[], uuid[], integer[], boolean[], text[], text[], smallint[], integer[], text[], uuid[], uuid[], text[], text[],
  text[], integer
) is
  'Appends a batch of one-event commands as a whole, or nothing of it; append() judges all other batches.';


-- probe_append: could a call of append() be written now? It takes the locks that an append takes, waits for none of them, and
-- gives them back before it returns: an append that runs at the same time waits for some microseconds at most. It writes no
-- event, but its commit is flushed, and confirmed by a synchronous standby, as that of an append.
--
-- free: no other session holds one of the locks. position: the end of the log, if one does: it moves while others append.
create function headwater.probe_append(of_epoch integer, out free boolean, out "position" bigint) language plpgsql volatile
  set search_path = headwater, pg_temp
as $$
declare
  passed boolean;
begin
  begin
    lock table head, events, commands, claims in row exclusive mode nowait;
    select epoch <> of_epoch or timeline <> timeline_now() or made_as <> tableoid into strict passed from head for update nowait;
    raise exception 'the locks are given back' using errcode = 'HW002';
  exception
    when sqlstate 'HW002' then free := true;
    when lock_not_available then free := false;
  end;
  if passed then
    perform refuse_epoch();
  end if;
  if not free then
    select h.position into probe_append.position from head h;
  end if;
end $$;
comment on function headwater.probe_append(integer) is
  'Says whether an append could be written now. Writes no event, waits for no lock and keeps none.';
