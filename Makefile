# make demo       a teacher, a student without and one with attention loss, compared: 5 minutes on 2 CPU cores;
#                 make demo SEED=1 DEMO=out/demo1 to see how much of it is luck
# make demo-uag   attention-guided translation of drawn fruit beside plain CycleGAN: 11 minutes on 2 CPU cores
# make test       the test suite
# make bench      speed of the training steps: 4 minutes on a CPU core; out/bench/
# make bench-gpu  that at the paper's sizes, and the tests that need a GPU
# make picture    a longer look, 64 px faces of full variety: hours on 2 CPU cores; ITERS=
# make results    tables 1-4 in small, on drawn faces: hours on 2 EPYC cores; by the logs 50 minutes for TABLES=table1;
#                 also TABLES=again, late, lite, validation, uag
# make page       results/README.md, the README's results and summary.svg again, from the JSON
# make clean      removes the demos and .venv, no other run
# make tables     the paper's tables at its sizes: CelebA, 128 px, a GPU; TRAIN=, STUDENT=, EVAL=, SEEDS=, TABLES=
# All but the tables (their data) start from a fresh clone, and pick up where they were when run again.

# The Python that runs it all: PY=..., or an active environment that has torch, or else .venv, which is made.
ACTIVE := $(or $(VIRTUAL_ENV),$(CONDA_PREFIX))
NEEDED = 'torch', 'torchvision', 'scipy', 'PIL', 'pytest'
HAS_ALL = import importlib.util, sys; sys.exit(None in map(importlib.util.find_spec, ($(NEEDED))))
ifdef ACTIVE
PY := $(shell $(ACTIVE)/bin/python -c "$(HAS_ALL)" 2>/dev/null && echo $(ACTIVE)/bin/python)
endif
ifeq ($(PY),)
PY := .venv/bin/python
endif
ifeq ($(PY),.venv/bin/python)
INSTALLED = .venv/installed
endif
.PHONY: demo demo-without demo-with demo-uag demo-uag-attention demo-uag-cyclegan \
        test bench bench-gpu picture results tables page clean
.DELETE_ON_ERROR:

.venv/installed: requirements.txt
	python3 -m venv .venv
	.venv/bin/pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

# Small enough for two cores: 32 px, faces that differ little, small nets, one G step for each D step, a high learning
# rate; the weights of the losses keep the paper's balance. The students share the cores, one each: on a CPU the number of
# threads belongs to what makes a run repeatable. The device is said, so that a GPU does not change what the demo shows.
DEMO = out/demo
SEED = 0
DEMO_TRAIN = --seed=$(SEED) --n_critic=1 --lr=1e-3 --lambda_rec=20 --batch_size=8 --device=cpu --log_interval=100 \
             --sample_interval=250 --ckpt_interval=250 --resume=True
DEMO_S = train_student.py --teacher=$(DEMO)/T/ckpt.pt --conv_dim=12 --n_blocks=1 --max_iters=1000 $(DEMO_TRAIN)
demo: $(INSTALLED)
	$(PY) data/toyfaces/prepare.py --image_size=32 --balance=1 --variety=0.35 --n_train=3000 --n_val=200 --n_test=200 \
	    --attrs=Blond_Hair,Eyeglasses,Mustache,Rosy_Cheeks,Pale_Skin --dst=$(DEMO)/data
	OMP_NUM_THREADS=2 $(PY) train_teacher.py --dataset=$(DEMO)/data --attrs=all --out_dir=$(DEMO)/T $(DEMO_TRAIN) \
	    --max_iters=1000 --conv_dim=24 --n_blocks=2 --d_conv_dim=32 --d_n_layers=4
	OMP_NUM_THREADS=1 $(MAKE) --no-print-directory --jobs=2 demo-without demo-with
	$(PY) evaluate.py --ckpt=$(DEMO)/T/ckpt.pt,$(DEMO)/S-without/ckpt.pt,$(DEMO)/S-with/ckpt.pt \
	    --out_dir=$(DEMO)/eval --clf_dir=$(DEMO)/clf --clf_epochs=2 --inception=none --device=cpu

# Parts of demo, which makes the data and the teacher that they need
demo-without: $(INSTALLED)
	$(PY) $(DEMO_S) --lambda_att=0 --out_dir=$(DEMO)/S-without

demo-with: $(INSTALLED)
	$(PY) $(DEMO_S) --cam=hirescam --att_norm=l2 --lambda_att=3 --out_dir=$(DEMO)/S-with

# 64 px, small nets, batches of 2; an epoch is 500 iterations. CycleGAN is done before UAG. It is evaluated while UAG still
# trains: that trains the classifier which the last step needs too.
UAG = out/demo-uag
UAG_TRAIN = train_uag.py --dataset=$(UAG)/data --ngf=16 --n_blocks=3 --ndf=32 --naf=16 --d_n_layers=2 \
            --batch_size=2 --lr=1e-3 --lambda_cyc=5 --n_epochs=3.6 --switch_at=0.83 --decay_at=0.83 \
            --device=cpu --seed=$(SEED) --log_interval=100 --sample_interval=250 --ckpt_interval=250 --resume=True
UAG_EVALUATE = evaluate.py --clf_dir=$(UAG)/clf --clf_epochs=2 --inception=none --device=cpu
demo-uag: $(INSTALLED)
	$(PY) data/toyfruit/prepare.py --n_train=1000 --n_test=100 --dst=$(UAG)/data
	OMP_NUM_THREADS=1 $(MAKE) --no-print-directory --jobs=2 demo-uag-attention demo-uag-cyclegan
	$(PY) $(UAG_EVALUATE) --ckpt=$(UAG)/UAG/ckpt.pt,$(UAG)/CycleGAN/ckpt.pt --out_dir=$(UAG)/eval

# Parts of demo-uag, which makes their data
demo-uag-attention: $(INSTALLED)
	$(PY) $(UAG_TRAIN) --out_dir=$(UAG)/UAG

demo-uag-cyclegan: $(INSTALLED)
	$(PY) $(UAG_TRAIN) --attention=False --out_dir=$(UAG)/CycleGAN
	$(PY) $(UAG_EVALUATE) --ckpt=$(UAG)/CycleGAN/ckpt.pt --out_dir=$(UAG)/CycleGAN/eval > $(UAG)/CycleGAN/evaluation.txt

test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(PY) -m pytest -q tests

bench: $(INSTALLED)
	OMP_NUM_THREADS=1 $(PY) tests/bench.py

bench-gpu: $(INSTALLED)
	$(PY) tests/bench.py --sizes=paper
	$(PY) -m pytest -q -rs tests/test_gpu.py

# A finished run is skipped, an interrupted one goes on where it was; ITERS= is the length of all three
ITERS = 8000
PICTURE = out/picture
PICTURE_TRAIN = --n_critic=1 --lr=1e-3 --lambda_rec=20 --batch_size=8 --max_iters=$(ITERS) --log_interval=100 \
                --sample_interval=1000 --ckpt_interval=500 --resume=True
PICTURE_S = train_student.py --teacher=$(PICTURE)/T/ckpt.pt --conv_dim=12 --n_blocks=1 $(PICTURE_TRAIN)
picture: $(INSTALLED)
	$(PY) data/toyfaces/prepare.py --balance=1 --n_train=10000 --dst=$(PICTURE)/data
	$(PY) train_teacher.py --dataset=$(PICTURE)/data --attrs=Blond_Hair,Eyeglasses,Mustache,Rosy_Cheeks,Pale_Skin \
	    --conv_dim=24 --n_blocks=3 --d_conv_dim=24 --d_n_layers=5 --out_dir=$(PICTURE)/T $(PICTURE_TRAIN)
	$(PY) $(PICTURE_S) --lambda_att=0 --out_dir=$(PICTURE)/S-without
	$(PY) $(PICTURE_S) --cam=hirescam --att_norm=l2 --out_dir=$(PICTURE)/S-with
	$(PY) evaluate.py --ckpt=$(PICTURE)/T/ckpt.pt,$(PICTURE)/S-without/ckpt.pt,$(PICTURE)/S-with/ckpt.pt \
	    --out_dir=$(PICTURE)/eval --clf_dir=$(PICTURE)/clf --clf_epochs=3 --inception=none

SEEDS =
TABLES = table1,table2,table3,table4
# more flags: for every training run; for students only, such as STUDENT=--att_norm=l2; for evaluate.py
TRAIN =
STUDENT =
EVAL =
RUN = $(PY) results/run.py --tables=$(TABLES) --seeds=$(SEEDS) --train="$(TRAIN)" --student="$(STUDENT)" --evaluation="$(EVAL)"
results: $(INSTALLED)
	$(RUN)

tables: $(INSTALLED)
	$(RUN) --setting=paper --jobs=1

page: $(INSTALLED)
	$(PY) results/run.py --page=True

clean:
	rm -rf out/demo out/demo-uag .venv
