BEGIN TRANSACTION;
CREATE TABLE schema_version (
	version INTEGER NOT NULL, 
	PRIMARY KEY (version)
);
INSERT INTO "schema_version" VALUES(1);
CREATE TABLE steps (
	trajectory_uid VARCHAR NOT NULL, 
	step_index INTEGER NOT NULL, 
	prompt_uid VARCHAR NOT NULL, 
	prompt_ids BLOB NOT NULL, 
	response_ids BLOB NOT NULL, 
	rollout_log_probs BLOB, 
	reward FLOAT, 
	policy_version INTEGER NOT NULL, 
	is_last BOOLEAN NOT NULL, 
	metadata TEXT NOT NULL, 
	role VARCHAR NOT NULL, 
	trainable BOOLEAN NOT NULL, 
	parent INTEGER, 
	branch_reason VARCHAR NOT NULL, 
	temperature FLOAT NOT NULL, 
	messages TEXT NOT NULL, 
	text TEXT NOT NULL, 
	finish_reason VARCHAR NOT NULL, 
	latency_s FLOAT NOT NULL, 
	PRIMARY KEY (trajectory_uid, step_index)
);
INSERT INTO "steps" VALUES('train-000000-0000-00',0,'train-000000-0000',X'010000000200000003000000',X'0400000005000000',X'9A9999999999B9BF59F3F8C21F6EA581',NULL,0,0,'{"x":-Infinity}','policy',1,NULL,'',1.0,'{"!tuple":[{"role":"user","content":"How many?\u2028 \ud83d\ude00"}]}','"three\ud800"','stop',0.0);
INSERT INTO "steps" VALUES('train-000001-0000-00',0,'train-000001-0000',X'010000000200000003000000',X'0400000005000000',X'9A9999999999B9BF59F3F8C21F6EA581',NULL,1,0,'{"x":-Infinity}','policy',1,NULL,'',1.0,'{"!tuple":[{"role":"user","content":"How many?\u2028 \ud83d\ude00"}]}','"three\ud800"','stop',0.0);
INSERT INTO "steps" VALUES('train-000002-0000-00',0,'train-000002-0000',X'010000000200000003000000',X'0400000005000000',X'9A9999999999B9BF59F3F8C21F6EA581',NULL,2,0,'{"x":-Infinity}','policy',1,NULL,'',1.0,'{"!tuple":[{"role":"user","content":"How many?\u2028 \ud83d\ude00"}]}','"three\ud800"','stop',0.0);
CREATE TABLE trajectories (
	id INTEGER NOT NULL, 
	uid VARCHAR NOT NULL, 
	prompt_uid VARCHAR NOT NULL, 
	channel VARCHAR NOT NULL, 
	train_step INTEGER, 
	status VARCHAR NOT NULL, 
	created_at FLOAT NOT NULL, 
	task TEXT NOT NULL, 
	tool_calls TEXT NOT NULL, 
	answer TEXT NOT NULL, 
	turns INTEGER NOT NULL, 
	error TEXT NOT NULL, 
	rewards TEXT NOT NULL, 
	reward FLOAT, 
	metadata TEXT NOT NULL, 
	PRIMARY KEY (id), 
	UNIQUE (uid)
);
INSERT INTO "trajectories" VALUES(1,'train-000000-0000-00','train-000000-0000','train',0,'completed',1.79532588197755122189e+09,'{"id":"t1","prompt":{"!tuple":[{"role":"user","content":"How many?"}]},"answer":["3",3],"kind":"default","split":"train","metadata":{"needs":{"!tuple":["search"]},"by_year":{"!dict":[[7,null]]}}}','[]','"3"',1,'""','{"correctness":1.0}',1.0,'{}');
INSERT INTO "trajectories" VALUES(2,'train-000001-0000-00','train-000001-0000','train',1,'completed',1.79532588198626923562e+09,'{"id":"t1","prompt":{"!tuple":[{"role":"user","content":"How many?"}]},"answer":["3",3],"kind":"default","split":"train","metadata":{"needs":{"!tuple":["search"]},"by_year":{"!dict":[[7,null]]}}}','[]','"3"',1,'""','{"correctness":1.0}',1.0,'{}');
INSERT INTO "trajectories" VALUES(3,'train-000002-0000-00','train-000002-0000','train',2,'running',1.79532588198885607712e+09,'{"id":"t1","prompt":{"!tuple":[{"role":"user","content":"How many?"}]},"answer":["3",3],"kind":"default","split":"train","metadata":{"needs":{"!tuple":["search"]},"by_year":{"!dict":[[7,null]]}}}','[]','null',0,'""','{}',NULL,'{}');
INSERT INTO "trajectories" VALUES(4,'val-0','val-0','val',NULL,'running',1.79532588199006795885e+09,'{"id":"t1","prompt":{"!tuple":[{"role":"user","content":"How many?"}]},"answer":["3",3],"kind":"default","split":"train","metadata":{"needs":{"!tuple":["search"]},"by_year":{"!dict":[[7,null]]}}}','[]','null',0,'""','{}',NULL,'{}');
CREATE INDEX trajectories_by_step ON trajectories (train_step);
CREATE INDEX trajectories_by_channel ON trajectories (channel, train_step);
CREATE INDEX trajectories_by_prompt ON trajectories (prompt_uid);
CREATE INDEX steps_by_prompt ON steps (prompt_uid);
COMMIT;
