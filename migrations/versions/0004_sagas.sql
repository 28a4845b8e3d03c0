create table headwater.sagas (
  stream_id uuid primary key,
  saga text collate "C" not null,
  key uuid not null,
  version integer not null check (version > 0),
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
  constraint sagas_saga_key_key unique (saga, key)
);
comment on table headwater.sagas is
  'Each instance of each saga as its stream tells it, for operators, and for a worker to know which to take up. Derived: '
  'written with the checkpoint of the saga, from the records that the checkpoint passes.';
comment on column headwater.sagas.step is 'The command that it waits for; null when it waits for something else.';
comment on column headwater.sagas.since is 'When the last thing happened to it.';
comment on column headwater.sagas.compensates is 'Whether steps of it were, or are being, undone.';
-- What an operator asks for is what is not over; what is over is by far the most.
create index sagas_open on headwater.sagas (saga, status, since) where status in ('running', 'undoing', 'parked');
create index sagas_since on headwater.sagas (since);

-- Nothing has been written to it so far: no code did.
drop table headwater.timers;
create table headwater.timers (
  stream_id uuid not null,
  message text collate "C" not null,
  saga text collate "C" not null,
  due_at timestamptz not null,
  constraint timers_pkey primary key (stream_id, message)
);
comment on table headwater.timers is
  'Messages that fall due, derived from the streams of sagas, which have the last word.';
create index timers_due on headwater.timers (saga, due_at, stream_id);
