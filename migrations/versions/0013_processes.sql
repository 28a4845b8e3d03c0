create table headwater.processes (
  process_id uuid primary key,
  name       text not null,
  serves     boolean not null,
  started_at timestamptz not null default now(),
  seen_until timestamptz not null,
  report     json not null
);
comment on table headwater.processes is
  'What each process tells of itself every few seconds, for `headwater status`. Nothing depends on it.';
comment on column headwater.processes.process_id is 'That of its row among the workers, where it keeps projections.';
comment on column headwater.processes.seen_until is 'Until when it counts as running, unless it tells something more.';
comment on column headwater.processes.report is
  'How what it keeps gets on, what became of the commands that it sent to the log, and how soon subscribers had changes.';

comment on column headwater.workers.paces is
  'Not used any more: `processes.report` has it. It stays for workers that still run code from before.';

comment on column headwater.projections.fingerprint is
  'Of what is declared: columns, the values of their enums, indexes and version, and after a point the kinds of events that are '
  'taken. Of a saga or a reactor only the latter. Another means that the rows are made again, or that older code must leave it.';
comment on column headwater.projections.earlier is
  'Fingerprints of code that has kept it before, had enums of fewer values or took other kinds of events, and must leave it.';
