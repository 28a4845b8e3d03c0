import { defineConfig } from 'vite'

export default defineConfig({
  base: '/explorer/',
  build: {
    outDir: '../src/headwater/graphql/explorer/static',
    emptyOutDir: true,
    sourcemap: false,
    license: { fileName: 'licenses.md' }, // the licenses of the bundled packages require it
    chunkSizeWarningLimit: 8_000, // kB: the editor is one large chunk, which browsers load once a release
  },
})
