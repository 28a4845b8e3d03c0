-- A row cannot be read by code whose enum has not its value. So the values are part of what is declared: where one goes, the
-- rows are made again. Where one is added, all rows stay readable, and the generation is handed to the new code as it is.
alter table headwater.projections
  add column enums text not null default '{}',
  add column earlier text[] not null default '{}';
comment on column headwater.projections.enums is 'JSON: the values that each column of an enum may hold, as declared.';
comment on column headwater.projections.earlier is
  'Fingerprints of older code, whose enums had fewer values, and whose rows this generation has kept.';
comment on column headwater.projections.fingerprint is
  'Of the declared columns, and the values of their enums: another means the rows are made again, unless all that is new is '
  'more values.';
